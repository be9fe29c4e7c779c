"""Simple preference optimisation: the mean log-probability of an answer is its reward, with a target margin.

Needs no reference policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Objective
from llamafactory.objectives._pairs import PairLoss
from llamafactory.rendering.records import Preference

RECORD = Preference


def build(config: RunConfig) -> Objective:
    """The objective of `stage: simpo`."""
    preference = config.preference
    return Simpo(
        beta=preference.pref_beta,
        ftx=preference.pref_ftx,
        ld_alpha=preference.ld_alpha,
        averaged=True,
        gamma=preference.simpo_gamma,
    )


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """[P] mean log-probabilities -> [P]: -log s(beta (chosen - rejected) - gamma).

    https://arxiv.org/abs/2405.14734 eq. 6.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)


@dataclass(frozen=True)
class Simpo(PairLoss):
    """gamma: the margin by which the chosen answer should win."""

    gamma: float = 0.5

    def losses(self, logps: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = logps
        return simpo(chosen, rejected, self.beta, self.gamma), {}
