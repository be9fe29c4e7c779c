"""Odds ratio preference optimisation: imitate the chosen answer and make it likelier than the rejected one.

Needs no reference policy. Log-probabilities are means over the tokens of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Objective
from llamafactory.objectives._pairs import PairLoss
from llamafactory.rendering.records import Preference

RECORD = Preference


def build(config: RunConfig) -> Objective:
    """The objective of `stage: orpo`."""
    preference = config.preference
    return Orpo(beta=preference.pref_beta, ftx=preference.pref_ftx, ld_alpha=preference.ld_alpha, averaged=True)


def odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[P] mean log-probabilities a -> [P]: -log s(log odds(chosen) - log odds(rejected)), odds = e^a / (1 - e^a).

    https://arxiv.org/abs/2403.07691 eq. 7.
    """
    log_odds = (chosen - rejected) - (_log1mexp(chosen) - _log1mexp(rejected))
    return -logsigmoid(log_odds)


def _log1mexp(value: Tensor) -> Tensor:
    """log(1 - e^value), finite for values that round to 0."""
    return torch.log(-torch.expm1(value.clamp(max=-1e-6)))


@dataclass(frozen=True)
class Orpo(PairLoss):
    """-chosen + beta * odds_ratio, https://arxiv.org/abs/2403.07691 eq. 6; reports both terms."""

    def losses(self, logps: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = logps
        ratio = odds_ratio(chosen, rejected)
        return -chosen + self.beta * ratio, {"sft_loss": -chosen, "odds_ratio_loss": ratio}
