"""Objectives: what a training stage minimises. One file per stage, pure torch.

Knows no trainer, no model class and no data format. Shapes: N supervised tokens of a batch, B sequences, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says about the supervised tokens of one batch, in the order of the flattened batch.

    logps: [N] fp32, log p(target | tokens before it), differentiable. targets: [N] token ids. rows: [N] index of the
    sequence each token belongs to. weights: [N] loss weights. stats: further per-token values [N] that the objective
    asked for through `token_stats`. aux_loss: router loss of mixture-of-experts models, or None.
    """

    logps: Tensor
    targets: Tensor
    rows: Tensor
    weights: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    aux_loss: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A summed loss and its metrics as [sum, count] pairs. The trainer owns every denominator."""

    loss_sum: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """One training stage.

    needs_reference: the trainer must score the batch with the reference policy too.
    """

    needs_reference: bool

    def count(self, batch: Batch) -> Tensor:
        """Number of loss units (tokens or pairs) in a batch, before any division; a scalar tensor."""
        ...

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        """Per-token values computed where logits exist: [n, V], [n] -> {name: [n]}; called per chunk of tokens."""
        ...

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        """Summed loss over the batch."""
        ...
