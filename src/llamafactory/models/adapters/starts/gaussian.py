"""A from N(0, 1/rank^2), B zero; the base stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.facts import LORA_ONLY, Facts

FACTS = Facts("gaussian", chosen_by=(("lora_init", ("gaussian",)),), clashes=(LORA_ONLY,))

SOURCE = "shape"


def factors(shape: Tensor, rank: int, scale: float, config: RunConfig) -> tuple[Tensor, Tensor]:
    """A [rank, in] and B [out, rank] from the global random state."""
    del scale, config
    return torch.randn(rank, shape.shape[1]) / rank, torch.zeros(shape.shape[0], rank)
