"""LOMO: plain gradient descent within the backward pass, no state at all, https://arxiv.org/abs/2306.09782.

W <- W - lr * G the moment G is complete, then G is freed. The paper's clipping by the norm of all gradients needs a
second backward pass and is not offered.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.facts import WHOLE_WEIGHTS, Facts, updates_in_backward
from llamafactory.optim._update import (
    Group,
    State,
    TensorwiseOptimizer,
    adam_defaults,
    decay_groups,
    trained,
)

FACTS = Facts("LOMO", chosen_by=(("optim", ("lomo",)),), clashes=(*WHOLE_WEIGHTS, *updates_in_backward()))


class Lomo(TensorwiseOptimizer):
    """The direction is the gradient."""

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """G."""
        return gradient


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """LOMO on all trained weights."""
    groups = decay_groups(list(trained(model).values()), args.weight_decay)
    return Lomo(groups, adam_defaults(args)).update_in_backward(args.max_grad_norm)
