"""Direct preference optimisation: learn from pairs, against a reference policy, without a reward model.

The log-ratio of an answer is log p_policy(answer) - log p_reference(answer), over all its tokens. All losses are of one
pair, to be minimised; the trainer sums them and divides once by the number of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Objective, orpo, simpo
from llamafactory.objectives._pairs import PairLoss
from llamafactory.rendering.records import Preference

RECORD = Preference


def build(config: RunConfig) -> Objective:
    """The objective of `stage: dpo`, by `pref_loss`."""
    preference = config.preference
    if preference.pref_loss in {"orpo", "simpo"}:
        return {"orpo": orpo, "simpo": simpo}[preference.pref_loss].build(config)
    return Dpo(
        beta=preference.pref_beta,
        ftx=preference.pref_ftx,
        ld_alpha=preference.ld_alpha,
        averaged=preference.pref_loss == "ipo",
        loss=preference.pref_loss,
        smoothing=preference.dpo_label_smoothing,
        bco_weight=preference.pref_bco_weight,
    )


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """[P] log-ratios -> [P]: -(1-e) log s(beta d) - e log s(-beta d), d = chosen - rejected.

    https://arxiv.org/abs/2305.18290 eq. 7; e, the assumed share of swapped labels, is conservative DPO
    (https://ericmitchell.ai/cdpo.pdf eq. 3).
    """
    logit = beta * (chosen - rejected)
    return -(1 - smoothing) * logsigmoid(logit) - smoothing * logsigmoid(-logit)


def robust(chosen: Tensor, rejected: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """[P] log-ratios -> [P]: (-(1-e) log s(beta d) + e log s(-beta d)) / (1 - 2e), d = chosen - rejected.

    Unbiased under a share e of swapped labels, https://arxiv.org/abs/2403.00409 eq. 9; plain DPO for e = 0.
    """
    logit = beta * (chosen - rejected)
    return (-(1 - smoothing) * logsigmoid(logit) + smoothing * logsigmoid(-logit)) / (1 - 2 * smoothing)


def hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """[P] log-ratios -> [P]: max(0, 1 - beta d), d = chosen - rejected. https://arxiv.org/abs/2309.06657 eq. 9."""
    return torch.relu(1 - beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """[P] log-ratios, means over tokens -> [P]: (d - 1/(2 beta))^2, d = chosen - rejected.

    https://arxiv.org/abs/2310.12036 eq. 17.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto_pair(chosen: Tensor, rejected: Tensor, beta: float, kl: Tensor) -> Tensor:
    """[P] log-ratios -> [P]: mean of 1 - s(beta (chosen - KL_rejected)) and 1 - s(beta (KL_chosen - rejected)).

    kl: [2], the mean log-ratio of all chosen and of all rejected answers of the update, not below 0, without gradient.
    The unpaired loss of https://arxiv.org/abs/2402.01306 section 4 on pairs: either half estimates the other's KL.
    """
    return 1 - (torch.sigmoid(beta * (chosen - kl[1])) + torch.sigmoid(beta * (kl[0] - rejected))) / 2


def bco(chosen: Tensor, rejected: Tensor, beta: float, delta: Tensor) -> Tensor:
    """[P] log-ratios -> [P]: -log s(beta chosen - delta) - log s(-(beta rejected - delta)).

    delta: running mean of the rewards beta * log-ratio, without gradient. https://arxiv.org/abs/2404.04656 eq. 9.
    """
    return -logsigmoid(beta * chosen - delta) - logsigmoid(-(beta * rejected - delta))


@dataclass(frozen=True)
class Dpo(PairLoss):
    """DPO and its relatives. loss: `pref_loss`. bco_weight: w of (loss + w * BCO) / (1 + w).

    kto_pair needs the column `kl` in its batches, bco_pair and a bco_weight the column `delta`.
    """

    loss: str = "sigmoid"
    smoothing: float = 0.0
    bco_weight: float = 0.0
    needs_reference: bool = True

    def losses(self, logps: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        chosen, rejected = logps - reference
        losses = self._loss(chosen, rejected, batch)
        if self.bco_weight:
            mixed = bco(chosen, rejected, self.beta, batch["delta"])
            losses = (losses + self.bco_weight * mixed) / (1 + self.bco_weight)
        return losses, {}

    def _loss(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        match self.loss:
            case "sigmoid":
                return sigmoid(chosen, rejected, self.beta, self.smoothing)
            case "robust":
                return robust(chosen, rejected, self.beta, self.smoothing)
            case "kto_pair":
                return kto_pair(chosen, rejected, self.beta, batch["kl"])
            case "bco_pair":
                return bco(chosen, rejected, self.beta, batch["delta"])
            case _:
                return {"hinge": hinge, "ipo": ipo}[self.loss](chosen, rejected, self.beta)
