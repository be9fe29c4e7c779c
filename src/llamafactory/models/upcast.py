"""Casts to float32 that cost little and steady training: normalisation weights, the output of the head.

Knows parameter names; no options and no method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def upcast_norms(model: nn.Module) -> int:
    """Cast one-dimensional parameters of normalisation layers to fp32 in place; returns how many."""
    count = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and _is_norm(name) and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
            count += 1
    return count


def _is_norm(name: str) -> bool:
    return any("norm" in part or part.startswith("ln") or part.endswith("_ln") for part in name.lower().split("."))


def upcast_head_output(model: PreTrainedModel) -> None:
    """Make the output embedding return fp32 logits."""
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_hook(_to_float)


def _to_float(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
    return output.to(torch.float32)
