"""LoRA's own start: A uniform, B zero, as PEFT makes it."""

from __future__ import annotations

from torch import Tensor

from llamafactory.models.adapters.starts import StartOptions


def factors(weight: Tensor, rank: int, scale: float, options: StartOptions) -> None:
    """Leave the matrices as they are."""
    del weight, rank, scale, options
