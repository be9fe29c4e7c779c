"""LoRA-GA (Wang et al. 2024, arXiv:2407.05000, algorithm 1): the first step goes where full fine-tuning would go.

With G = U S V^T the gradient of the weight [out, in] on a few batches: A = c V_{1..r}^T, B = c U_{r+1..2r}, c =
out^(1/4) / sqrt(gamma). The base becomes W - s B A (the paper's eta is our s), so that the model answers as before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llamafactory.facts import FROM_DATA, OUT_OF_THE_BASE, Facts
from llamafactory.models.adapters.starts import StartOptions

FACTS = Facts("LoRA-GA", chosen_by=(("lora_init", ("lora_ga",)),), clashes=(*OUT_OF_THE_BASE, *FROM_DATA))
SOURCE = "gradient"
GAMMA = 16


def factors(gradient: Tensor, rank: int, scale: float, options: StartOptions) -> tuple[Tensor, Tensor]:
    """The first r right and the next r left singular vectors, from the global random state (arXiv:0909.4061)."""
    del scale, options
    left, _, right = torch.svd_lowrank(gradient, min(4 * rank, *gradient.shape), niter=4)
    length = gradient.shape[0] ** 0.25 / GAMMA**0.5
    return length * right[:, :rank].T, length * left[:, rank : 2 * rank]
