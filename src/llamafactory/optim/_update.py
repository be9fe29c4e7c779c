"""What the optimizers of this room share: one update of one tensor, after the backward pass or within it.

`W <- W - lr * weight_decay * W - lr * D`, where the direction D comes from the gradient by the rule of the optimizer
(D points up the loss). Knows no rule and no option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainingArguments

from llamafactory.errors import ModelError
from llamafactory.logs import notice

State = dict[str, Any]
Group = dict[str, Any]


class TensorwiseOptimizer(Optimizer):
    """An optimizer whose update of a tensor needs nothing but that tensor's gradient and state.

    After `update_in_backward` each tensor is updated the moment its gradient is complete, and the gradient is freed;
    `step` then only closes the step. Gradients that are not finite change nothing.
    """

    def __init__(self, groups: list[Group], defaults: Mapping[str, object]) -> None:
        super().__init__(groups, dict(defaults))
        self.in_backward = False
        self._seen: dict[int, Tensor] = {}

    def direction(self, gradient: Tensor, parameter: nn.Parameter, state: State, group: Group) -> Tensor:
        """The direction D of one tensor; advances its state."""
        raise NotImplementedError

    def update(self, parameter: nn.Parameter, group: Group) -> None:
        """Update one tensor that has a gradient."""
        assert parameter.grad is not None
        direction = self.direction(parameter.grad, parameter, self.state[parameter], group)
        descend(parameter, direction, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient, unless the backward pass has done it."""
        assert closure is None, "closures are not supported"
        self._seen.clear()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, group)

    def update_in_backward(self, max_grad_norm: float) -> TensorwiseOptimizer:
        """From now on update within the backward pass; returns self. max_grad_norm: what cannot be honoured."""
        self.in_backward = True
        if max_grad_norm:
            notice("Weights are updated within the backward pass, so gradients are not clipped to max_grad_norm")
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                parameter.register_post_accumulate_grad_hook(partial(self._update_now, number))
        return self

    @torch.no_grad()
    def _update_now(self, number: int, parameter: nn.Parameter) -> None:
        if id(parameter) in self._seen:
            raise ModelError(
                "a weight got a second gradient in one update, but updates within the backward pass need exactly one; "
                "switch off the layerwise option (or choose another optim)"
            )
        assert parameter.grad is not None
        norm = torch.linalg.vector_norm(wide(parameter.grad))
        self._seen[id(parameter)] = norm
        if norm.isfinite():
            self.update(parameter, self.param_groups[number])
        parameter.grad = None

    def applied_grad_norm(self) -> Tensor:
        """Norm of all gradients used since the last `step`, for optimizers that update within the backward pass."""
        norms = list(self._seen.values())
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def descend(weight: Tensor, direction: Tensor, group: Group) -> None:
    """One step of `weight` in place: decoupled weight decay, then against the direction."""
    if group["weight_decay"]:
        weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.add_(direction.to(weight.dtype), alpha=-group["lr"])


def wide(tensor: Tensor) -> Tensor:
    """16-bit numbers as fp32; wider ones as they are."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def adam_defaults(args: TrainingArguments) -> Group:
    """What every group starts from: learning rate, and the constants of Adam."""
    return {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "weight_decay": args.weight_decay,
    }


def decay_groups(
    parameters: list[nn.Parameter], weight_decay: float, options: Mapping[str, object] | None = None
) -> list[Group]:
    """Matrices with weight decay, vectors and scalars without; further options for both. Empty groups are left out."""
    found = []
    for decay, chosen in (
        (weight_decay, [parameter for parameter in parameters if parameter.ndim > 1]),
        (0.0, [parameter for parameter in parameters if parameter.ndim <= 1]),
    ):
        if chosen:
            found.append({"params": chosen, "weight_decay": decay, **(options or {})})
    return found


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that learn; shared ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
