"""EVA (Paischer et al. 2024, arXiv:2410.07170): A starts as the directions in which the layer's inputs lie; B is zero.

With X [N, in] the inputs of the layer at supervised tokens, X = U S V^T: A = V_r^T. X is not centred, as in the paper's
reconstruction objective, and every layer keeps the same rank (the paper's rho = 1). The decomposition is incremental,
one batch after the other, through a summary of twice the rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.facts import FROM_DATA, LORA_ONLY, Facts
from llamafactory.models.adapters.starts import StartOptions

FACTS = Facts("EVA", chosen_by=(("lora_init", ("eva",)),), clashes=(LORA_ONLY, *FROM_DATA))
SOURCE = "inputs"
OVERSAMPLING = 2


def fold(summary: Tensor | None, inputs: Tensor, rank: int) -> Tensor:
    """S V^T [k, in] of the inputs so far, with the new ones [N, in] added; k is at most twice the rank."""
    together = inputs.float() if summary is None else torch.cat([summary, inputs.float()])
    _, values, right = torch.svd_lowrank(together, min(OVERSAMPLING * rank, *together.shape), niter=4)
    return values[:, None] * right.T


def factors(summary: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """The first rank directions, of length 1, and no B; where fewer were seen, random ones of about that length."""
    del scale, options
    down = (summary / summary.norm(dim=1, keepdim=True).clamp(min=1e-12))[:rank]
    width = summary.shape[1]
    further = torch.randn(rank - len(down), width, device=down.device) / width**0.5
    return torch.cat([down, further]), torch.zeros(0, rank)
