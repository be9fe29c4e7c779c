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
    """Cast one-dimensional parameters of normalisation layers to fp32 in place; returns how many.

    Such a layer gives numbers in the format of its input, as before: what follows may have narrow weights.
    """
    count = 0
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and _is_norm(name) and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
            owner, _, part = name.rpartition(".")
            if part == "weight":
                model.get_submodule(owner).register_forward_hook(_as_input)
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


def _as_input(module: nn.Module, arguments: tuple[object, ...], output: Tensor) -> Tensor:
    given = arguments[0] if arguments else None
    return output.to(given.dtype) if isinstance(given, Tensor) else output
