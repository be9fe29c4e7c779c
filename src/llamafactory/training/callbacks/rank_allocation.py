"""AdaLoRA's schedule (Zhang et al. 2023, arXiv:2303.10512): which triplets of the adapter stay, decided as it learns.

After every update t of T, for every weight w of the adapter with gradient g (equations 9 to 11):

    I <- 0.85 I + 0.15 |w g|;   U <- 0.85 U + 0.15 ||w g| - I|;   s(w) = I U
    S of triplet i = s(e_i) + mean s(row i of A) + mean s(column i of B)

Of all triplets of the model the b(t) with the largest S keep their value, the others get e = 0 and may come back while
the budget shrinks (equation 12): b0 during the warm-up, then b_T + (b0 - b_T)(1 - progress)^3, then b_T, and the choice
is final. Decided anew a hundred times a run. Before every update the gradient of 0.1 (|A A^T - 1|^2 + |B^T B -
1|^2) is added (equation 4, squared Frobenius norms), after clipping. The running means lie in the optimizer's state, so
checkpoints keep them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamafactory.config.run import RunConfig

BETA = 0.85
ORTHOGONALITY = 0.1
NUM_DECISIONS = 100
_ADAPTER = "default"

Triplets = tuple[nn.Parameter, nn.Parameter, nn.Parameter]
"""A [r, in], e [r, 1] and B [out, r] of one layer."""


class RankAllocation(TrainerCallback):
    """Runs the schedule on the adapter of the trained model."""

    def __init__(self, config: RunConfig) -> None:
        self._rank = config.lora.lora_rank
        self._warmup, self._final = config.adalora.adalora_warmup_ratio, config.adalora.adalora_final_ratio

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for down, _, up in triplets(kwargs["model"]):
            for weight, rows in ((down, down), (up, up.T)):
                if weight.grad is not None:
                    pull = ORTHOGONALITY * orthogonality_gradient(rows.detach())
                    weight.grad += (pull if rows is weight else pull.T).to(weight.grad)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        layers, optimizer, total = list(triplets(kwargs["model"])), kwargs["optimizer"], state.max_steps
        step, end = state.global_step + 1, total - int(self._final * total)
        if any(weight.grad is None for layer in layers for weight in layer):
            return  # an update that was skipped because its numbers are not finite
        if step > end:
            for _, values, _ in layers:
                values.data.masked_fill_(~optimizer.state[values]["kept"], 0.0)
            return
        for layer in layers:
            for weight in layer:
                observe(weight, optimizer)
        start = int(self._warmup * total)
        if step == end or (step > start and step % max(1, total // NUM_DECISIONS) == 0):
            whole = sum(len(values) for _, values, _ in layers)
            allocate(layers, optimizer, budget(step, start, end, whole, self._rank * len(layers)))


def triplets(model: nn.Module) -> Iterator[Triplets]:
    """The matrices of every adapted layer."""
    for module in model.modules():
        if isinstance(module, AdaLoraLayer) and not isinstance(module, AdaLoraModel) and _ADAPTER in module.lora_E:
            yield module.lora_A[_ADAPTER], module.lora_E[_ADAPTER], module.lora_B[_ADAPTER]


def budget(step: int, start: int, end: int, first: int, last: int) -> int:
    """Triplets that stay after update `step` (1-based): all until `start`, `last` from `end` on, a cubic between."""
    if step <= start:
        return first
    if step >= end:
        return last
    return int(last + (first - last) * (1 - (step - start) / (end - start)) ** 3)


def orthogonality_gradient(rows: Tensor) -> Tensor:
    """Gradient of |M M^T - 1|^2 (squared Frobenius norm) for M [r, n]: 4 (M M^T - 1) M."""
    excess = rows @ rows.T
    excess.diagonal().sub_(1.0)
    return 4 * excess @ rows


@torch.no_grad()
def observe(weight: nn.Parameter, optimizer: Optimizer) -> None:
    """Fold |w g| into the running importance and uncertainty of a weight, which lie in the optimizer's state."""
    assert weight.grad is not None
    state, present = optimizer.state[weight], (weight * weight.grad).abs().float()
    importance = state.setdefault("importance", torch.zeros_like(present))
    uncertainty = state.setdefault("uncertainty", torch.zeros_like(present))
    importance.lerp_(present, 1 - BETA)
    uncertainty.lerp_((present - importance).abs(), 1 - BETA)


@torch.no_grad()
def allocate(layers: list[Triplets], optimizer: Optimizer, num_kept: int) -> None:
    """Set e to zero but for the `num_kept` triplets with the largest scores, and remember which these are."""
    scores = [_scores(layer, optimizer) for layer in layers]
    chosen = torch.cat(scores).topk(num_kept).indices
    kept = torch.zeros(sum(map(len, scores)), dtype=torch.bool, device=chosen.device)
    kept[chosen] = True
    for (_, values, _), part in zip(layers, kept.split([len(score) for score in scores]), strict=True):
        optimizer.state[values]["kept"] = part[:, None]
        values.masked_fill_(~part[:, None], 0.0)


def _scores(layer: Triplets, optimizer: Optimizer) -> Tensor:
    """S of every triplet of a layer, [r]."""
    down, values, up = (
        optimizer.state[weight]["importance"] * optimizer.state[weight]["uncertainty"] for weight in layer
    )
    return values.flatten() + down.mean(dim=1) + up.mean(dim=0)
