"""A from N(0, 1/rank^2), B zero; the base stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.facts import LORA_ONLY, Facts
from llamafactory.models.adapters.starts import StartOptions

FACTS = Facts("gaussian", chosen_by=(("lora_init", ("gaussian",)),), clashes=(LORA_ONLY,))
SOURCE = "shape"


def factors(shape: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] from the global random state."""
    del scale, options
    return torch.randn(rank, shape.shape[1]) / rank, torch.zeros(shape.shape[0], rank)
