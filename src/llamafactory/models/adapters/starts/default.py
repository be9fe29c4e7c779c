"""LoRA's own start: A uniform, B zero, as PEFT makes it."""

from __future__ import annotations

from torch import Tensor

from llamafactory.models.adapters.starts import StartOptions

SOURCE = "shape"


def factors(shape: Tensor, rank: int, scale: float, options: StartOptions) -> None:
    """Leave the matrices as they are."""
    del shape, rank, scale, options
