"""Kahneman-Tversky optimisation: learn from single answers marked good or bad, against a reference policy.

https://arxiv.org/abs/2402.01306. Shapes: B examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Head, LossOutput, Objective, Scores, sequence_sums
from llamafactory.objectives._pairs import over
from llamafactory.rendering.records import Feedback

RECORD = Feedback


def build(config: RunConfig) -> Objective:
    """The objective of `stage: kto`."""
    preference = config.preference
    return Kto(
        beta=preference.pref_beta,
        desirable_weight=preference.kto_chosen_weight,
        undesirable_weight=preference.kto_rejected_weight,
        ftx=preference.pref_ftx,
    )


def kto(ratios: Tensor, desirable: Tensor, kl: Tensor, beta: float, weights: tuple[float, float]) -> Tensor:
    """[B] log-ratios policy - reference of answers -> [B] losses, section 4.1, eq. 8, without its constant lambda.

    desirable: w_D (1 - s(beta (r - z))); others: w_U (1 - s(beta (z - r))). z is `kl`: the mean log-ratio of answers to
    other prompts over the whole update, not below 0, without gradient. weights: (w_D, w_U).
    """
    sign = torch.where(desirable, 1.0, -1.0)
    weight = desirable * weights[0] + ~desirable * weights[1]
    losses: Tensor = weight * (1 - torch.sigmoid(beta * sign * (ratios - kl)))
    return losses


@dataclass(frozen=True)
class Kto:
    """Unit: example. Batches need the columns `kl` and `desirable_share`, both of the whole update.

    ftx: weight of the supervised loss, the mean over desirable examples divided by their share of all examples.
    """

    beta: float
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    ftx: float = 0.0
    needs_reference: bool = True
    head: Head = "lm"

    def count(self, batch: Batch) -> Tensor:
        return batch["counted"].sum()

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        return {"mean_logit": logits.detach().mean(-1)}

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        if scores.reference_logps is None:
            raise ValueError("the KTO loss needs the log-probabilities of a reference policy")
        counted, desirable = batch["counted"], batch["desirable"]

        def add(values: Tensor) -> Tensor:
            return sequence_sums(values, scores.rows, counted.numel())

        logps, lengths = add(scores.logps), add(torch.ones_like(scores.logps))
        ratios = logps - add(scores.reference_logps)
        losses = kto(ratios, desirable, batch["kl"], self.beta, (self.desirable_weight, self.undesirable_weight))
        if self.ftx:
            share = torch.where(batch["desirable_share"] > 0, batch["desirable_share"], 1.0)
            supervised = -(logps / lengths.clamp(min=1)) / share**2
            losses = losses + self.ftx * torch.where(desirable, supervised, 0.0)
        loss = torch.where(counted, losses, 0.0).sum()
        if scores.aux_loss is not None:
            loss = loss + scores.aux_loss * counted.sum()
        values = {"rewards": self.beta * ratios, "logps": logps}
        metrics = _by_class(values, counted, desirable) | _logits(add(scores.stats["mean_logit"]), lengths, desirable)
        return LossOutput(loss, metrics | {"kl": torch.stack([batch["kl"] * counted.sum(), counted.sum()])})


def _by_class(values: dict[str, Tensor], counted: Tensor, desirable: Tensor) -> dict[str, Tensor]:
    """Means over the desirable and over the undesirable examples, as [sum, count]."""
    metrics = {}
    for name, value in values.items():
        metrics[f"{name}/chosen"] = over(value, counted & desirable)
        metrics[f"{name}/rejected"] = over(value, counted & ~desirable)
    return metrics


def _logits(sums: Tensor, lengths: Tensor, desirable: Tensor) -> dict[str, Tensor]:
    """Means over the tokens of either class, as [sum, count]."""
    return {
        f"logits/{name}": torch.stack([torch.where(chosen, sums, 0.0).sum(), torch.where(chosen, lengths, 0.0).sum()])
        for name, chosen in (("chosen", desirable), ("rejected", ~desirable))
    }
