"""LoftQ (Li et al. 2023, arXiv:2310.08659, algorithm 1): the adapter starts as what rounding to 4 bits takes away.

Alternately Q = nf4(W - s B A) and s B A = the first r singular components of W - Q. The base becomes Q, rounded to nf4
but stored in its own format."""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.facts import OUT_OF_THE_BASE, Clash, Facts
from llamafactory.models.nf4 import round_to_nf4

NUM_ALTERNATIONS = 4


FACTS = Facts(
    "LoftQ",
    chosen_by=(("lora_init", ("loftq",)),),
    clashes=(*OUT_OF_THE_BASE, Clash("pissa_convert", "a rounded base is no plain base", "remove pissa_convert")),
)


def factors(weight: Tensor, rank: int, scale: float, config: RunConfig) -> tuple[Tensor, Tensor]:
    """The factors after the last alternation."""
    del config
    delta = torch.zeros_like(weight)
    for _ in range(NUM_ALTERNATIONS):
        left, values, right = torch.linalg.svd(weight - residual(weight, delta), full_matrices=False)
        roots = (values[:rank] / scale).sqrt()
        down, up = roots[:, None] * right[:rank], left[:, :rank] * roots
        delta = scale * up @ down
    return down, up


def residual(weight: Tensor, delta: Tensor) -> Tensor:
    """nf4(W - delta), in fp32."""
    return round_to_nf4(weight - delta)
