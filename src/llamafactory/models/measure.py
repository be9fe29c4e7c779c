"""What a start of LoRA looks at before training: the inputs of every adapted layer, or the gradient of its weight.

Measures while somebody else runs the model. Knows no data and no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from llamafactory.models.adapters.starts import STARTS
from llamafactory.models.start import ADAPTER, MEASURED, adapted_layers

if TYPE_CHECKING:
    from llamafactory.config.run import RunConfig


def source_of(model: nn.Module, config: RunConfig) -> str | None:
    """`inputs` or `gradient` when the new adapter of `model` waits for them, else None."""
    given = config.model.adapter_name_or_path and not config.lora.create_new_adapter
    if config.finetuning.finetuning_type != "lora" or given or not isinstance(model, PeftModel):
        return None
    source = getattr(STARTS.load(config.lora.init), "SOURCE", "weight")
    return source if source in MEASURED else None


@contextmanager
def input_summaries(
    model: PeftModel, config: RunConfig, mask: Callable[[], Tensor | None]
) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping, layer name -> summary [k, in], that grows with every forward pass inside the block.

    mask: the tokens of the present batch that count, [B, T] bool; inputs of another shape count in full.
    """
    fold = STARTS.load(config.lora.init).fold
    found: dict[str, Tensor] = {}

    def look(name: str, rank: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen, counted = inputs[0].detach(), mask()
        fits = counted is not None and counted.shape == seen.shape[:-1]
        rows = seen[counted] if fits else seen.flatten(0, -2)
        if len(rows):
            found[name] = fold(found.get(name), rows, rank)

    handles = [
        layer.register_forward_pre_hook(partial(look, name, layer.r[ADAPTER])) for name, layer in adapted_layers(model)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def weight_gradients(model: PeftModel) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping, layer name -> gradient [out, in], that grows with every backward pass inside the block.

    Sums in fp32 in main memory: of all gradients only one is on the device at a time. Clears all gradients at the end.
    """
    found: dict[str, Tensor] = {}
    handles: list[Any] = []

    def take(name: str, turned: bool, weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = (weight.grad.T if turned else weight.grad).detach().float().cpu()
        found[name] = found[name] + gradient if name in found else gradient
        weight.grad = None

    layers = dict(adapted_layers(model))
    weights = [layer.get_base_layer().weight for layer in layers.values()]
    for (name, layer), weight in zip(layers.items(), weights, strict=True):
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(partial(take, name, layer.fan_in_fan_out)))
    try:
        with torch.enable_grad():
            yield found
    finally:
        for handle, weight in zip(handles, weights, strict=True):
            handle.remove()
            weight.requires_grad_(False)
        model.zero_grad(set_to_none=True)
