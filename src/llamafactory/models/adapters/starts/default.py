"""LoRA's own start: A uniform, B zero, as PEFT makes it."""

from __future__ import annotations

from torch import Tensor

from llamafactory.config.run import RunConfig

SOURCE = "shape"


def factors(shape: Tensor, rank: int, scale: float, config: RunConfig) -> None:
    """Leave the matrices as they are."""
    del shape, rank, scale, config
