"""Supervised fine-tuning: cross-entropy over the answers, and three ways to reweight it.

nll_t = -log p(target_t); `sg` stops the gradient; losses are summed over tokens and divided once by their global count.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.objectives import Objective, Scores
from llamafactory.objectives._tokens import CrossEntropy
from llamafactory.rendering.records import Conversation

RECORD = Conversation


def build(config: RunConfig) -> Objective:
    """The objective of `stage: sft`. Raises ConfigError for two losses at once, or a loss and label smoothing."""
    loss, smoothing = config.loss, config.training.label_smoothing_factor
    chosen = [name for name in ("use_dft_loss", "use_eaft_loss", "use_asft_loss") if getattr(loss, name)]
    if len(chosen) > 1:
        raise ConfigError(
            f"{chosen[1]}: {' and '.join(chosen)} are both true, but a run has one loss; keep one of them"
        )
    if chosen and smoothing:
        raise ConfigError(
            f"label_smoothing_factor: {smoothing} has no effect with {chosen[0]}: true, which has its own loss; "
            f"remove one of the two"
        )
    accuracy = config.finetuning.compute_accuracy
    variants: dict[str, Objective] = {
        "use_dft_loss": Dft(accuracy=accuracy),
        "use_eaft_loss": Eaft(accuracy=accuracy, alpha=loss.eaft_alpha),
        "use_asft_loss": Asft(accuracy=accuracy, alpha=loss.asft_alpha),
    }
    return variants[chosen[0]] if chosen else CrossEntropy(label_smoothing=smoothing, accuracy=accuracy)


@dataclass(frozen=True)
class Dft(CrossEntropy):
    """Dynamic fine-tuning, https://arxiv.org/abs/2508.05629: loss_t = sg(p(target_t)) * nll_t."""

    def token_loss(self, scores: Scores) -> Tensor:
        return -scores.logps.detach().exp() * scores.logps


@dataclass(frozen=True)
class Eaft(CrossEntropy):
    """Entropy-adaptive fine-tuning, https://arxiv.org/abs/2601.02151: loss_t = sg(H_t / 3)^alpha * nll_t.

    H_t is the entropy in nats of the 20 most likely tokens, renormalised; 3 is its maximum ln(20), rounded.
    """

    alpha: float = 1.0

    TOP = 20
    MAX_ENTROPY = 3.0

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        top = logits.detach().topk(min(self.TOP, logits.shape[-1]), dim=-1).values.log_softmax(-1)
        entropy = -(top.exp() * top).sum(-1)
        return super().token_stats(logits, targets, reference_logits) | {"entropy": entropy}

    def token_loss(self, scores: Scores) -> Tensor:
        return -((scores.stats["entropy"] / self.MAX_ENTROPY) ** self.alpha) * scores.logps


@dataclass(frozen=True)
class Asft(Dft):
    """Anchored fine-tuning, https://arxiv.org/abs/2509.23753: loss_t = DFT_t + alpha * KL(reference || policy)_t.

    KL_t = sum_v q_v * (log q_v - log p_v) over the whole vocabulary, q the frozen reference and p the trained model.
    """

    alpha: float = 0.1
    needs_reference: bool = True

    def token_stats(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None) -> dict[str, Tensor]:
        if reference_logits is None:
            raise ValueError("the ASFT loss needs the logits of a reference policy")
        kl = functional.kl_div(logits.log_softmax(-1), reference_logits.softmax(-1), reduction="none").sum(-1)
        return super().token_stats(logits, targets, None) | {"kl": kl}

    def token_loss(self, scores: Scores) -> Tensor:
        return super().token_loss(scores) + self.alpha * scores.stats["kl"]
