"""Objectives: what a training stage minimises. One file per stage, pure torch.

Knows no trainer, no model class and no data format. Shapes: N supervised tokens of a batch, B sequences, V vocabulary.
A file `objectives/<stage>.py` defines `RECORD` (the record its data must be) and `build(config) -> Objective`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from llamafactory.parts import Family
from llamafactory.rendering.tokens import IGNORE_INDEX

STAGES = Family(key="stage", package="llamafactory.objectives", exports=("RECORD", "build"))

Batch = Mapping[str, Tensor]

Head = Literal["lm", "value", "both"]
"""What an objective reads. lm: log-probabilities of the supervised tokens. value: the value head's output at the last
token of every sequence; the vocabulary projection never runs. both: log-probabilities and values of the tokens."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says about the supervised tokens of one batch, in the order of the flattened batch.

    logps: [N] fp32, log p(target | tokens before it), differentiable. targets: [N] token ids. rows: [N] index of the
    sequence each token belongs to (a packed row holds several). weights: [N] fp32 loss weights. stats: further values
    [N] per token that the objective asked for through `token_stats`. reference_logps: [N] fp32 log p of the reference
    policy, or None without one. aux_loss: router loss of mixture-of-experts models times its coefficient, or None.

    values: fp32 outputs of the value head, differentiable. With head "both" [N], of the hidden state that predicts each
    supervised token; with head "value" [B], of the last token of each sequence, and all fields of tokens are empty.
    """

    logps: Tensor
    targets: Tensor
    rows: Tensor
    weights: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    reference_logps: Tensor | None = None
    aux_loss: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A summed loss and its metrics as [sum, count] pairs. The trainer owns every denominator.

    The names in `metrics` are the same for every batch, also for one without supervised tokens. The name `nll` is
    reserved: the plain negative log-likelihood, from which evaluation reports the perplexity.
    """

    loss_sum: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One training stage.

    needs_reference: the trainer must score the batch with the reference policy too. head: see `Head`.
    """

    @property
    def needs_reference(self) -> bool: ...

    @property
    def head(self) -> Head: ...

    def count(self, batch: Batch) -> Tensor:
        """Number of loss units (tokens or pairs) in a batch, before any division; a scalar integer tensor."""
        ...

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        """Per-token values computed where logits exist: [n, V] fp32, [n] -> {name: [n]}; called per chunk of tokens."""
        ...

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        """Summed loss over the batch."""
        ...


def supervised(batch: Batch) -> Tensor:
    """Which positions predict a supervised token: [B, T-1] bool, position t predicts the token at t+1.

    The first token of a packed segment (its position id is 0) is never predicted: nothing comes before it.
    """
    mask = batch["labels"][:, 1:] != IGNORE_INDEX
    if batch.get("position_ids") is not None:
        mask = mask & (batch["position_ids"][..., 1:] != 0)
    return mask


def summed(values: Tensor) -> Tensor:
    """[n] -> [sum, count], detached fp32: one metric of a batch."""
    count = torch.tensor(float(values.numel()), device=values.device)
    return torch.stack([values.detach().float().sum(), count])


def sequence_sums(values: Tensor, rows: Tensor, num_sequences: int) -> Tensor:
    """[N] values of tokens, [N] index of each token's sequence -> [num_sequences] sums, differentiable."""
    return values.new_zeros(num_sequences).index_add(0, rows, values)
