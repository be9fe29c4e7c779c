"""Quantizing a model while it is exported. One file per value of `export_quantization_method`.

Every file defines `prepare(config)`, which raises before anything is loaded where the run cannot do it, and
`pack(model, folder, samples, *, bits, target)`, which writes packed weights, their configuration and the generation
settings into `folder`. The model is of no further use then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llamafactory.models.record import BaseRecord
from llamafactory.models.save import SaveOptions
from llamafactory.parts import Family

PACKINGS = Family("export_quantization_method", "llamafactory.models.packing", ("prepare", "pack"))

Samples = Sequence[Sequence[int]]
"""Token ids of calibration texts."""


@dataclass(frozen=True, slots=True)
class Target:
    """How the weights are written."""

    record: BaseRecord
    options: SaveOptions


def largest_difference(bits: int) -> float:
    """Most that rounding may move a logit, as a share of the largest one."""
    return {8: 0.05, 4: 0.35, 3: 0.6}.get(bits, 1.0)
