"""Gradient checkpointing: only layers that learn are recomputed, and frozen bases still pass gradients on.

Layers without trained parameters keep no activations anyway, so recomputing them costs time for nothing. With the
reentrant variant a layer whose inputs need no gradient would learn nothing; its input is marked instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from llamafactory.errors import ModelError
from llamafactory.models.compat import enable_activation_checkpointing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def enable_checkpointing(model: PreTrainedModel, *, reentrant: bool) -> int:
    """Switch on recomputation for the layers of `model` that learn, in place; returns how many.

    Call it when it is settled which parameters are trained. Raises ModelError when the model cannot do it.
    """
    if not model.supports_gradient_checkpointing:
        raise ModelError(
            f"{model.config.model_type} does not support gradient checkpointing; "
            "set disable_gradient_checkpointing: true"
        )
    enable_activation_checkpointing(model, reentrant=reentrant)
    count = 0
    for stack in _stacks(model):
        learning = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in stack]
        for layer, learns in zip(stack, learning, strict=True):
            layer.gradient_checkpointing = learns
        count += sum(learning)
        if reentrant and any(learning):
            _mark_input(model, stack, learning.index(True))
    return count


def _stacks(model: nn.Module) -> list[list[GradientCheckpointingLayer]]:
    """Runs of layers that follow one another."""
    return [
        [layer for layer in module if isinstance(layer, GradientCheckpointingLayer)]
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(layer, GradientCheckpointingLayer) for layer in module)
    ]


def _mark_input(model: PreTrainedModel, stack: list[GradientCheckpointingLayer], first: int) -> None:
    """Make the input of layer `first` require a gradient."""
    if first == 0:
        model.enable_input_require_grads()
    else:
        stack[first - 1].register_forward_hook(_require_grad)


def _require_grad(module: nn.Module, arguments: object, output: object) -> None:
    hidden = output[0] if isinstance(output, tuple) else output
    if isinstance(hidden, Tensor) and hidden.is_leaf:
        hidden.requires_grad_(True)
