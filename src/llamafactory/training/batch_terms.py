"""Terms of preference losses that are means over a whole update, computed before its first gradient.

All are means over every micro-batch and every process, so how an update is split changes nothing. Knows batches and
scores, no formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Objective, Scores, sequence_sums
from llamafactory.objectives._pairs import PairLoss
from llamafactory.training.preparation import Preparation
from llamafactory.training.scoring import Scorer

KL = "kl_"


def build_batch_terms(config: RunConfig, scorer: Scorer, objective: Objective) -> Preparation | None:
    """What the loss of this run must know of the whole update; None for losses that need nothing."""
    stage, preference = config.finetuning.stage, config.preference
    if stage == "kto":
        return FeedbackTerms(scorer)
    if stage != "dpo" or not isinstance(objective, PairLoss):
        return None
    if preference.pref_loss == "kto_pair":
        return PairTerms(scorer, objective)
    if preference.pref_loss == "bco_pair" or preference.pref_bco_weight:
        return RewardShift(scorer, objective)
    return None


@dataclass(frozen=True)
class FeedbackTerms:
    """Adds `kl`, the mean log-ratio of mismatched answers, not below 0, and `desirable_share` of the examples.

    Takes the kl_* columns out of the batches; one forward without gradient for each of them.
    """

    scorer: Scorer

    def __call__(self, model: nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]:
        sums = torch.stack([self._sums(model, batch) for batch in batches]).sum(0)
        kl_sum, kl_count, num_desirable, num_examples = reduce(sums, reduction="sum")
        kl = (kl_sum / kl_count.clamp(min=1)).clamp(min=0).float()
        share = (num_desirable / num_examples.clamp(min=1)).float()
        terms = {"kl": kl, "desirable_share": share}
        return [{name: value for name, value in batch.items() if not name.startswith(KL)} | terms for batch in batches]

    def _sums(self, model: nn.Module, batch: Batch) -> Tensor:
        mismatched = {name.removeprefix(KL): value for name, value in batch.items() if name.startswith(KL)}
        ratios, counted = log_ratios(self.scorer(model, mismatched), mismatched["counted"].numel()), batch["counted"]
        desirable = batch["desirable"] & counted
        return torch.stack([ratios.sum(), *(flags.sum() for flags in (mismatched["counted"], desirable, counted))])


@dataclass(frozen=True)
class PairTerms:
    """Adds `kl` [2]: the mean log-ratio of chosen and of rejected answers, not below 0; one more forward."""

    scorer: Scorer
    objective: PairLoss

    def __call__(self, model: nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]:
        found = [_pair_sums(self.objective, self.scorer(model, batch), batch) for batch in batches]
        sums = torch.stack(found).sum(0)
        *totals, count = reduce(sums, reduction="sum")
        kl = (torch.stack(totals) / count.clamp(min=1)).clamp(min=0).float()
        return [{**batch, "kl": kl} for batch in batches]


class RewardShift:
    """Adds `delta`, the mean reward of both answers over all updates so far and the present one; one more forward.

    The running mean of https://arxiv.org/abs/2404.04656 section 3.3, kept through checkpoints.
    """

    def __init__(self, scorer: Scorer, objective: PairLoss) -> None:
        self._scorer, self._objective = scorer, objective
        self._seen = torch.zeros(2, dtype=torch.float64)  # sum of rewards, number of answers

    def __call__(self, model: nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]:
        found = [_pair_sums(self._objective, self._scorer(model, batch), batch) for batch in batches]
        sums = torch.stack(found).sum(0)
        chosen, rejected, count = reduce(sums, reduction="sum")
        seen = self._seen.to(sums.device) + torch.stack([self._objective.beta * (chosen + rejected), 2 * count])
        if training:
            self._seen = seen
        delta = (seen[0] / seen[1].clamp(min=1)).float()
        return [{**batch, "delta": delta} for batch in batches]

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {"seen": self._seen}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue from what `state` returned."""
        self._seen = cast("Tensor", state["seen"])


def _pair_sums(objective: PairLoss, scores: Scores, batch: Batch) -> Tensor:
    """[3]: log-ratios of chosen, of rejected answers as the loss compares them, summed; number of pairs."""
    counted = batch["counted"]
    _, logps, reference = objective.sides(scores, counted.numel())
    chosen, rejected = torch.where(counted, logps - reference, 0.0).double().sum(-1)
    return torch.stack([chosen, rejected, counted.sum()])


def log_ratios(scores: Scores, num_sequences: int) -> Tensor:
    """[num_sequences] fp64: log p of the policy minus log p of the reference; 0 for sequences without tokens."""
    if scores.reference_logps is None:
        raise ValueError("a log-ratio needs the log-probabilities of a reference policy")
    return sequence_sums((scores.logps - scores.reference_logps).double(), scores.rows, num_sequences)
