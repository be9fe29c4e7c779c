"""What the token losses (pt, sft) share: counting, per-token weights, label smoothing, accuracy.

Knows no stage and no option.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from llamafactory.objectives import Batch, Head, LossOutput, Scores, summed, supervised


@dataclass(frozen=True)
class CrossEntropy:
    """Token cross-entropy, optionally smoothed. Unit: supervised token.

    With smoothing eps the target distribution is (1-eps) on the target plus eps/V everywhere
    (https://arxiv.org/abs/1512.00567, section 7): loss_t = (1-eps)*nll_t + eps*mean_v(-log p_v).

    A token of weight w adds w*loss_t to the sum and 1 to the count, so its gradient is exactly w times that of a token
    of weight 1.

    accuracy: also report the share of supervised tokens whose most likely token is the target.
    """

    label_smoothing: float = 0.0
    accuracy: bool = False
    needs_reference: bool = False
    head: Head = "lm"

    def count(self, batch: Batch) -> Tensor:
        return supervised(batch).sum()

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        stats: dict[str, Tensor] = {}
        if self.label_smoothing:
            stats["mean_logp"] = logits.mean(-1) - logits.logsumexp(-1)
        if self.accuracy:
            stats["correct"] = (logits.detach().argmax(-1) == targets).float()
        return stats

    def token_loss(self, scores: Scores) -> Tensor:
        """Per-token loss [N], before weights."""
        nll = -scores.logps
        if not self.label_smoothing:
            return nll
        return (1 - self.label_smoothing) * nll - self.label_smoothing * scores.stats["mean_logp"]

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        loss = (scores.weights * self.token_loss(scores)).sum()
        if scores.aux_loss is not None:
            loss = loss + scores.aux_loss * scores.logps.numel()
        metrics = {"nll": summed(-scores.logps)}
        if self.accuracy:
            metrics["accuracy"] = summed(scores.stats["correct"])
        return LossOutput(loss, metrics)
