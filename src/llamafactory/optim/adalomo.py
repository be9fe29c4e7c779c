"""AdaLomo: Adafactor's second moment within the backward pass, https://arxiv.org/abs/2310.10195 algorithm 1.

U = G / sqrt(V) with the factored V of Adafactor; then W <- W - lr * max(10^-3, rms(W)) * U / max(1, rms(U)): the
grouped update normalization. The state of a matrix [m, n] is m + n numbers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.facts import WHOLE_WEIGHTS, Facts, updates_in_backward
from llamafactory.optim._rules import adafactor
from llamafactory.optim._update import (
    Group,
    State,
    TensorwiseOptimizer,
    adam_defaults,
    decay_groups,
    trained,
)

FACTS = Facts("AdaLomo", chosen_by=(("optim", ("adalomo",)),), clashes=(*WHOLE_WEIGHTS, *updates_in_backward()))

MIN_SCALE = 1e-3


class AdaLomo(TensorwiseOptimizer):
    """The update above."""

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """max(10^-3, rms(W)) times Adafactor's direction."""
        scale = parameter.float().square().mean().sqrt().clamp(min=MIN_SCALE)
        return adafactor(gradient, state, group) * scale


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """AdaLomo on all trained weights."""
    groups = decay_groups(list(trained(model).values()), args.weight_decay)
    return AdaLomo(groups, adam_defaults(args)).update_in_backward(args.max_grad_norm)
