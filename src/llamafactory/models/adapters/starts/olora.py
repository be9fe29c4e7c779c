"""OLoRA (Büyükakyüz 2024, arXiv:2406.01775): the adapter starts orthonormal, from W = Q R: B = Q_r, A = R_r."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.models.adapters.starts import StartOptions


def factors(weight: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """The first rank columns of Q and rows of R."""
    del scale, options
    left, right = torch.linalg.qr(weight)
    return right[:rank], left[:, :rank]
