"""Starts of LoRA's matrices. One file per value of `lora_init`.

Every file defines `factors(weight, rank, scale, options) -> (A, B) | None` for a weight [out, in] in fp32, with A
[rank, in] and B [out, rank] in fp32; None keeps PEFT's own (A uniform, B zero). A file may define `residual(weight,
delta, rounding) -> weight`, what the base becomes when `delta = scale B A` is taken out of it and the rest is rounded;
left out, it is `weight - delta`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamafactory.parts import Family

STARTS = Family("lora_init", "llamafactory.models.adapters.starts", ("factors",))


@dataclass(frozen=True, slots=True)
class StartOptions:
    """num_iterations: of a fast decomposition, negative for a full one. rounding: number format in words."""

    num_iterations: int
    rounding: str
