"""Reward modelling: the better of two answers to the same prompt gets the higher score.

The Bradley-Terry model of comparisons (https://arxiv.org/abs/2009.01325 section 3.3, https://arxiv.org/abs/2203.02155
eq. 1): the loss of one pair is -log sigmoid(s_chosen - s_rejected), to be minimised, where s is the value at the last
token of the whole conversation. The trainer sums it and divides once by the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Head, LossOutput, Objective, Scores
from llamafactory.objectives._pairs import over
from llamafactory.rendering.records import Preference

RECORD = Preference


def build(config: RunConfig) -> Objective:
    """The objective of `stage: rm`."""
    del config  # the loss has no options
    return Ranking()


def chosen_and_rejected(scores: Scores) -> tuple[Tensor, Tensor]:
    """[P] scores of the chosen answers, which come first in a batch, and [P] of the rejected ones."""
    assert scores.values is not None, "a reward model is scored by its value head"
    chosen, rejected = scores.values.view(2, -1)
    return chosen, rejected


@dataclass(frozen=True)
class Ranking:
    """-log sigmoid(s_chosen - s_rejected). Unit: pair.

    accuracy: share of pairs whose chosen answer has the higher score. Pairs that do not count (`counted` [P] bool) add
    exactly nothing.
    """

    needs_reference: bool = False
    head: Head = "value"

    def count(self, batch: Batch) -> Tensor:
        return batch["counted"].sum()

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        return {}

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        counted = batch["counted"]
        chosen, rejected = chosen_and_rejected(scores)
        loss = torch.where(counted, -logsigmoid(chosen - rejected), 0.0).sum()
        if scores.aux_loss is not None:
            loss = loss + scores.aux_loss * counted.sum()
        reported = {
            "accuracy": (chosen > rejected).float(),
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
        }
        return LossOutput(loss, {name: over(value, counted) for name, value in reported.items()})
