"""Muon: momentum made orthogonal for hidden matrices, AdamW for the rest, https://arxiv.org/abs/2502.16982.

For a matrix W [A, B] with gradient G:

    M <- 0.95 M + 0.05 G
    O = NewtonSchulz5(0.05 G + 0.95 M)   (Nesterov; U V^T of the singular value decomposition, roughly)
    W <- W - lr * weight_decay * W - lr * 0.2 sqrt(max(A, B)) * O

The factor (equation 4) gives O the root mean square of an AdamW update, so a learning rate of AdamW fits. Embeddings,
the output embedding and vectors follow AdamW. Fused experts [E, A, B] are E matrices. Works on whole weights: sharded
ones are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.config.run import RunConfig
from llamafactory.facts import ADAMW_ONLY, WHOLE_WEIGHTS, Facts
from llamafactory.optim._rules import adam
from llamafactory.optim._update import (
    Group,
    State,
    TensorwiseOptimizer,
    adam_defaults,
    decay_groups,
    trained,
)

FACTS = Facts("Muon", chosen_by=(("use_muon", (True,)),), clashes=(*WHOLE_WEIGHTS, ADAMW_ONLY))

MOMENTUM = 0.95
NUM_STEPS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ADAMW_NAMES = ("embed", "lm_head")


class Muon(TensorwiseOptimizer):
    """The update above, for the groups with `orthogonal`; AdamW for the others."""

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """0.2 sqrt(max(A, B)) O, or Adam's direction."""
        if not group["orthogonal"]:
            return adam(gradient, state, group)
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum"]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        factor = 0.2 * max(gradient.shape[-2:]) ** 0.5
        return newton_schulz(gradient.lerp(momentum, MOMENTUM)).to(gradient.dtype) * factor


def newton_schulz(matrix: Tensor) -> Tensor:
    """[.., A, B] -> about U V^T: five steps X <- aX + (b XX^T + c (XX^T)^2) X from X / |X|, in bfloat16.

    Singular values end between about 0.7 and 1.2, which is enough and needs no high precision.
    """
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def build(model: nn.Module, config: RunConfig, args: TrainingArguments) -> Optimizer:
    """Muon for hidden matrices, AdamW for the rest of the trained weights."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in trained(model).items():
        (matrices if _is_hidden_matrix(name, parameter) else others).append(parameter)
    groups = decay_groups(matrices, args.weight_decay, {"orthogonal": True})
    return Muon(groups + decay_groups(others, args.weight_decay, {"orthogonal": False}), adam_defaults(args))


def _is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    if any(word in name for word in _ADAMW_NAMES):
        return False
    return parameter.ndim == 2 or (parameter.ndim == 3 and "experts" in name)
