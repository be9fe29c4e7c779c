"""PiSSA (Meng et al. 2024, arXiv:2404.02948): the adapter starts as the largest singular components of the weight.

With W = U S V^T: A = sqrt(S_r / s) V_r^T, B = U_r sqrt(S_r / s), so that s B A are the first r components."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.models.adapters.starts import StartOptions


def factors(weight: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """Decompose in full, or quickly (arXiv:0909.4061) with `pissa_iter` iterations, from the global random state."""
    left, values, right = _decompose(weight, rank, options.num_iterations)
    roots = (values / scale).sqrt()
    return roots[:, None] * right.T, left * roots


def _decompose(weight: Tensor, rank: int, num_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [out, r], S [r], V [in, r]."""
    if num_iterations >= 0:
        return torch.svd_lowrank(weight, min(rank, *weight.shape), niter=num_iterations)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    return left[:, :rank], values[:rank], right[:rank].T
