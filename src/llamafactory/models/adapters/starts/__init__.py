"""Starts of LoRA's matrices. One file per value of `lora_init`.

Every file defines `factors(weight, rank, scale, config) -> (A, B) | None` for a weight [out, in] in fp32, with A [rank,
in] and B [out, rank] in fp32; None keeps PEFT's own (A uniform, B zero). A file may define `residual(weight, delta) ->
weight`, what the base becomes when `delta = scale B A` is taken out of it; left out, it is `weight - delta`.
"""

from __future__ import annotations

from llamafactory.parts import Family

STARTS = Family("lora_init", "llamafactory.models.adapters.starts", ("factors",))
