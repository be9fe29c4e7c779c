"""A from N(0, 1/rank^2), B zero; the base stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.models.adapters.starts import StartOptions


def factors(weight: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] from the global random state."""
    del scale, options
    return torch.randn(rank, weight.shape[1]) / rank, torch.zeros(weight.shape[0], rank)
