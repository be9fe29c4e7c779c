"""What the losses over pairs share: log-probabilities of both answers, their metrics, the supervised term.

Knows no option. Shapes: P pairs; [2, P] is chosen, then rejected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamafactory.objectives import Batch, Head, LossOutput, Scores, sequence_sums


@dataclass(frozen=True, slots=True)
class Answers:
    """Both answers of P pairs, every value [2, P].

    logps: log p(answer | prompt) by the policy, summed over tokens. lengths: number of tokens. reference: as logps, by
    the reference policy; zeros without one. weighted: as logps, with tokens behind the length of the shorter answer
    times `ld_alpha`. logits: mean logit over the vocabulary, summed over tokens.
    """

    logps: Tensor
    lengths: Tensor
    reference: Tensor
    weighted: Tensor
    logits: Tensor

    @classmethod
    def of(cls, scores: Scores, num_pairs: int, ld_alpha: float | None = None) -> Answers:
        """Add up the token scores of a batch whose sequences are all chosen, then all rejected answers."""

        def add(values: Tensor) -> Tensor:
            return sequence_sums(values, scores.rows, 2 * num_pairs).view(2, num_pairs)

        logps, lengths = add(scores.logps), add(torch.ones_like(scores.logps))
        reference = torch.zeros_like(lengths) if scores.reference_logps is None else add(scores.reference_logps)
        weighted = logps if ld_alpha is None else add(scores.logps * _ld_weights(scores.rows, lengths, ld_alpha))
        return cls(logps, lengths, reference, weighted, add(scores.stats["mean_logit"]))

    @property
    def num_tokens(self) -> Tensor:
        """`lengths`, safe to divide by."""
        return self.lengths.clamp(min=1)


def _ld_weights(rows: Tensor, lengths: Tensor, alpha: float) -> Tensor:
    """[N] weights of tokens, which are in the order of sequences: alpha behind the length of the shorter answer.

    LD-DPO, https://arxiv.org/abs/2409.06411 eq. 10.
    """
    starts = lengths.flatten().cumsum(0) - lengths.flatten()
    place = torch.arange(rows.numel(), device=rows.device) - starts[rows]
    shorter = lengths.min(dim=0).values.repeat(2)
    return torch.where(place < shorter[rows], 1.0, alpha)


@dataclass(frozen=True)
class PairLoss:
    """A loss over pairs. Unit: pair. Subclasses say what one pair loses, in `losses`.

    beta: strength. ftx: weight of the supervised loss on the chosen answer, a mean over its tokens. ld_alpha: see
    `Answers`. averaged: log-probabilities are means over tokens instead of sums.
    """

    beta: float
    ftx: float = 0.0
    ld_alpha: float | None = None
    averaged: bool = False
    needs_reference: bool = False
    head: Head = "lm"

    def count(self, batch: Batch) -> Tensor:
        return batch["counted"].sum()

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        return {"mean_logit": logits.detach().mean(-1)}

    def losses(self, logps: Tensor, reference: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """[2, P] of policy and reference -> loss of each pair [P], and further values [P] to report."""
        raise NotImplementedError

    def sides(self, scores: Scores, num_pairs: int) -> tuple[Answers, Tensor, Tensor]:
        """Both answers, and their log-probabilities by policy and reference as this loss compares them, each [2, P]."""
        answers = Answers.of(scores, num_pairs, self.ld_alpha)
        divisor = answers.num_tokens if self.averaged else torch.ones_like(answers.lengths)
        return answers, answers.weighted / divisor, answers.reference / divisor

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        counted = batch["counted"]
        answers, logps, reference = self.sides(scores, counted.numel())
        losses, reported = self.losses(logps, reference, batch)
        if self.ftx:
            losses = losses - self.ftx * (answers.logps / answers.num_tokens)[0]
        loss = torch.where(counted, losses, 0.0).sum()
        if scores.aux_loss is not None:
            loss = loss + scores.aux_loss * counted.sum()
        rewards = self.beta * (logps - reference)
        return LossOutput(loss, _metrics(rewards, logps, answers, counted, reported))


def _metrics(
    rewards: Tensor, logps: Tensor, answers: Answers, counted: Tensor, reported: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Means over pairs as [sum, count]; of logits, over tokens."""
    chosen, rejected = rewards
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
        **reported,
    }
    metrics = {name: over(value, counted) for name, value in values.items()}
    for name, side in (("logits/chosen", 0), ("logits/rejected", 1)):
        metrics[name] = torch.stack([answers.logits[side].sum(), answers.lengths[side].sum()]).detach()
    return metrics


def over(values: Tensor, counted: Tensor) -> Tensor:
    """[n], [n] bool -> [sum, count] of the counted values, detached."""
    return torch.stack([torch.where(counted, values.detach(), 0.0).sum(), counted.sum()])
