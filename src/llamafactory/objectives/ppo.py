"""PPO: a clipped policy gradient and a clipped value loss on answers the policy itself has sampled.

https://arxiv.org/abs/1707.06347. Answers, old log-probabilities, advantages and returns are columns of the batch; who
made them is no concern of this file. Unit: response token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.objectives import Batch, Head, LossOutput, Scores, sequence_sums, summed, supervised
from llamafactory.rendering.records import Prompt

RECORD = Prompt

COLUMNS = ("old_logps", "old_values", "advantages", "returns", "entropy", "scores", "kl", "kl_coef", "counted")
"""What a rollout adds to input_ids, attention_mask and labels. Of the N response tokens in the order of `Scores`:
old_logps, old_values, advantages, returns, entropy [N] fp32. Of the B sequences: scores (as the reward model gave
them), kl (summed over the response) [B] fp32, counted [B] bool. kl_coef: a scalar."""


def build(config: RunConfig) -> Ppo:
    """The objective of `stage: ppo`."""
    return Ppo()


@dataclass(frozen=True)
class Ppo:
    """L = sum_t [ -min(rho_t*A_t, clip(rho_t, 1-c, 1+c)*A_t) + w/2 * max((V_t-R_t)^2, (V'_t-R_t)^2) ].

    The policy part is equation 7 of https://arxiv.org/abs/1707.06347 with the sign of a loss; rho_t = p / p_old of the
    sampled token, A advantages, R returns. In the value part V' = V_old + clip(V - V_old, -v, v), so a value cannot
    gain by moving further than v (https://arxiv.org/abs/2005.12729, section 3). Summed over response tokens.

    clip: c. value_clip: v. value_weight: w. max_ratio: a sequence whose mean rho is above it adds nothing, because its
    answer has become too unlike the policy; per sequence, so that the way a batch is split does not matter.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.1
    max_ratio: float = 10.0
    needs_reference: bool = False
    head: Head = "both"

    def count(self, batch: Batch) -> Tensor:
        return supervised(batch).sum()

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        return {}

    def __call__(self, scores: Scores, batch: Batch) -> LossOutput:
        change = scores.logps - batch["old_logps"]
        kept = self._kept(change.detach().exp(), scores.rows, batch["counted"].numel())
        ratio = torch.where(kept > 0, change, 0.0).exp()  # an infinite ratio times 0 would be NaN
        policy, clipped = self.policy_loss(ratio, batch["advantages"])
        value = self.value_loss(_values(scores), batch["old_values"], batch["returns"])
        loss = (kept * (policy + self.value_weight * value)).sum()
        if scores.aux_loss is not None:
            loss = loss + scores.aux_loss * scores.logps.numel()
        parts = {"policy_loss": kept * policy, "value_loss": kept * value, "clip_fraction": clipped}
        return LossOutput(loss, {name: summed(part) for name, part in parts.items()} | _facts(batch, scores.rows))

    def policy_loss(self, ratio: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Per-token policy loss [N], and where the clipped ratio decided it [N] bool."""
        free = ratio * advantages
        bounded = ratio.clamp(1 - self.clip, 1 + self.clip) * advantages
        return -torch.minimum(free, bounded), (bounded < free).detach()

    def value_loss(self, values: Tensor, old_values: Tensor, returns: Tensor) -> Tensor:
        """Per-token value loss [N], with its factor 1/2 and without its weight."""
        bounded = old_values + (values - old_values).clamp(-self.value_clip, self.value_clip)
        return 0.5 * torch.maximum((values - returns).square(), (bounded - returns).square())

    def _kept(self, ratio: Tensor, rows: Tensor, num_sequences: int) -> Tensor:
        """[N] 1 for tokens of sequences whose mean ratio is at most max_ratio, else 0."""
        counts = sequence_sums(torch.ones_like(ratio), rows, num_sequences).clamp(min=1)
        return (sequence_sums(ratio, rows, num_sequences) / counts <= self.max_ratio).to(ratio)[rows]


@dataclass(frozen=True)
class BeforeUpdate(Ppo):
    """What a rollout asks about its own answers: the reference's log-probabilities and the policy's entropy too."""

    needs_reference: bool = True

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        return {"entropy": logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)}


def _facts(batch: Batch, rows: Tensor) -> dict[str, Tensor]:
    """Metrics of the rollout the batch comes from: means over its sequences, and over its tokens for the entropy."""
    counted = batch["counted"]
    lengths = sequence_sums(torch.ones_like(batch["old_logps"]), rows, counted.numel())
    values = {"reward": batch["scores"], "kl": batch["kl"], "response_length": lengths}
    values["kl_coef"] = batch["kl_coef"].expand(counted.numel())
    found = {name: summed(value[counted]) for name, value in values.items()}
    return found | {"entropy": summed(batch["entropy"])}


def _values(scores: Scores) -> Tensor:
    if scores.values is None:
        raise ValueError("PPO needs the outputs of a value head, but the scorer gave none")
    return scores.values
