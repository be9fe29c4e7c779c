"""EVA (Paischer et al. 2024, arXiv:2410.07170): A starts as the directions in which the layer's inputs lie; B is zero.

With X [N, in] the inputs of the layer at supervised tokens, X = U S V^T: A = V_r^T. X is not centred, as in the paper's
reconstruction objective, and every layer keeps the same rank (the paper's rho = 1). The decomposition is incremental,
one batch after the other, through a summary of twice the rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.facts import FROM_DATA, LORA_ONLY, Facts

SOURCE = "inputs"
OVERSAMPLING = 2


FACTS = Facts("EVA", chosen_by=(("lora_init", ("eva",)),), clashes=(LORA_ONLY, *FROM_DATA))


def fold(summary: Tensor | None, inputs: Tensor, rank: int) -> Tensor:
    """S V^T [k, in] of the inputs so far, with the new ones [N, in] added; k is at most twice the rank."""
    together = inputs.float() if summary is None else torch.cat([summary, inputs.float()])
    _, values, right = torch.svd_lowrank(together, min(OVERSAMPLING * rank, *together.shape), niter=4)
    return values[:, None] * right.T


def factors(summary: Tensor, rank: int, scale: float, config: RunConfig) -> tuple[Tensor, Tensor]:
    """The first rank directions, of length 1, and no B."""
    del scale, config
    lengths = summary.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (summary / lengths)[:rank], torch.zeros(0, rank)
