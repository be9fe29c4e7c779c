"""LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1): the adapter starts as what rounding to 4 bits takes away.

Alternately Q = round(W - s B A) and s B A = the first r singular components of W - Q. The base becomes Q: in the format
of a base quantized by bitsandbytes, else rounded to nf4 but stored in its own format."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.models.adapters.starts import StartOptions
from llamafactory.models.nf4 import round_to_nf4
from llamafactory.models.quantization.bnb import round_as

NUM_ALTERNATIONS = 4


def factors(weight: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """The factors after the last alternation."""
    delta = torch.zeros_like(weight)
    for _ in range(NUM_ALTERNATIONS):
        left, values, right = torch.linalg.svd(weight - residual(weight, delta, options.rounding), full_matrices=False)
        roots = (values[:rank] / scale).sqrt()
        down, up = roots[:, None] * right[:rank], left[:, :rank] * roots
        delta = scale * up @ down
    return down, up


def residual(weight: Tensor, delta: Tensor, rounding: str) -> Tensor:
    """round(W - delta), in fp32; rounding: nf4 as computed here, or a format of bitsandbytes in words."""
    return round_to_nf4(weight - delta) if rounding == "nf4" else round_as(weight - delta, rounding)
