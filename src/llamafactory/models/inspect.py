"""Saying what a model holds: how many parameters are trained, and the state of each one. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Numbers of single parameters (elements, not tensors)."""

    trainable: int
    total: int

    def line(self) -> str:
        """One line for the log."""
        share = 100.0 * self.trainable / max(self.total, 1)
        return f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable: {share:.4f}%"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count trained and all parameters; shared tensors count once, sharded ones by their full size."""
    sizes = [(parameter.requires_grad, _full_size(parameter)) for parameter in model.parameters()]
    return ParameterCount(sum(size for trained, size in sizes if trained), sum(size for _, size in sizes))


def _full_size(parameter: nn.Parameter) -> int:
    packed = getattr(parameter, "quant_state", None)  # of bitsandbytes, whose 4-bit weights lie two in a byte
    if packed is not None:
        return int(packed.shape.numel())
    return getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty local tensor


def parameter_status(model: nn.Module) -> Iterator[str]:
    """One line for every parameter: name, dtype, device, trained or not."""
    for name, parameter in model.named_parameters():
        yield (
            f"name: {name}, dtype: {parameter.dtype}, device: {parameter.device}, trainable: {parameter.requires_grad}"
        )
