"""The start of a LoRA adapter that takes its first values out of the base, and how the artefact remembers it.

With first values A0, B0 the base becomes W' = residual(W, s B0 A0), and W' + s B A is trained. The adapter's folder
holds A0 and B0 beside A and B, so that every load makes the same W' from the plain base, to the bit. W' + s B A is also
W + s (B A - B0 A0): a plain LoRA adapter of twice the rank (`as_plain`). Knows no method; `adapters.starts` does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llamafactory.errors import CheckpointError, ModelError
from llamafactory.models.adapters.starts import STARTS, StartOptions
from llamafactory.models.quantization import QUANTIZERS, Quantization, quantization_of
from llamafactory.models.safetensors_file import read_tensor

if TYPE_CHECKING:
    from llamafactory.config.run import RunConfig

START_FILE = "initial_adapter.safetensors"
_ADAPTER = "default"
_METHOD, _ROUNDING, _OWN_ROUNDING = "lora_init", "rounding", "nf4"
_PREFIX = "base_model.model."


class Residual(Protocol):
    """What the base becomes when `delta` is taken out of it and the rest is rounded; both [out, in] fp32."""

    def __call__(self, weight: Tensor, delta: Tensor, rounding: str) -> Tensor: ...


def start_adapter(model: PeftModel, config: RunConfig) -> None:
    """Give the new adapter of `model` the first values that `lora_init` names, in place."""
    method, quantization = STARTS.load(config.lora.init), quantization_of(model)
    rounding = _OWN_ROUNDING if quantization is None else quantization.describe()
    options, rounds = StartOptions(config.lora.pissa_iter, rounding), hasattr(method, "residual")
    for name, layer in _layers(model):
        weight = _weight(name, layer, quantization) if rounds or quantization is None else _shape_alone(layer)
        found = method.factors(weight, layer.r[_ADAPTER], layer.scaling[_ADAPTER], options)
        if found is None:
            return
        down, up = (_fill(part, like.weight) for part, like in zip(found, _matrices(layer), strict=True))
        for value, part in zip((down, up), _matrices(layer), strict=True):
            part.weight.data.copy_(value)
        if bool(up.any()):
            start = _Start(method.__name__.rsplit(".", 1)[-1], rounding, down, up)
            _take_out(layer, weight, start, quantization)


def take_up_start(model: PeftModel, folder: Path) -> None:
    """Change the base as the adapter in `folder` remembers it, in place; nothing without a stored start."""
    if not has_start(folder):
        return
    stored, (method, rounding) = load_file(folder / START_FILE), _facts(folder)
    quantization = quantization_of(model)
    if quantization is not None and quantization.folder is None:
        raise ModelError(
            f"adapter_name_or_path: {folder} took its first values out of plain weights (lora_init: {method}), and the "
            "base is stored quantized; give the unquantized base it was trained on"
        )
    for name, layer in _layers(model):
        if f"{name}.A" in stored:
            start = _Start(method, rounding, stored[f"{name}.A"], stored[f"{name}.B"])
            _take_out(layer, _weight(name, layer, quantization), start, quantization)


def refuse_other_start(model: nn.Module, folder: Path) -> None:
    """Raise CheckpointError when the live base was changed by another start than the one in a checkpoint."""
    live = _state(model)
    stored = load_file(folder / START_FILE) if has_start(folder) else {}
    same = live.keys() == stored.keys() and all(torch.equal(value.cpu(), stored[name]) for name, value in live.items())
    if not same:
        raise CheckpointError(
            f"{folder}: the adapter in it started from other values than this run computes (another machine or "
            "another release), so the run cannot go on exactly; train on with adapter_name_or_path instead"
        )


def has_start(folder: Path) -> bool:
    """True when the adapter in `folder` brings the first values of its matrices."""
    return (folder / START_FILE).is_file()


def start_method(folder: Path) -> str:
    """The `lora_init` of a stored start. Raises ModelError when it does not say."""
    return _facts(folder)[0]


def _facts(folder: Path) -> tuple[str, str]:
    """The `lora_init` and the rounding of a stored start. Raises ModelError when it does not say."""
    with safe_open(folder / START_FILE, framework="pt") as file:
        facts = file.metadata() or {}
    method = facts.get(_METHOD)
    if method not in STARTS.names():
        raise ModelError(f"{folder / START_FILE}: names no known start ({method!r}); take the file as it was written")
    return str(method), facts.get(_ROUNDING, _OWN_ROUNDING)


def save_start(model: PeftModel, folder: Path) -> None:
    """Write the first values beside the adapter; removes an earlier file when there are none."""
    state = {name: value.detach().cpu().clone() for name, value in _state(model).items()}
    if not state:
        (folder / START_FILE).unlink(missing_ok=True)
        return
    layer = next(layer for _, layer in _layers(model) if _METHOD in vars(layer))
    save_file(state, folder / START_FILE, metadata={key: str(vars(layer)[key]) for key in (_METHOD, _ROUNDING)})


def as_plain(model: PeftModel, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoraConfig]:
    """The adapter as one of twice the rank on the plain base: tensors by their names in the file, and options.

    s [B, B0] [A; -A0] = s (B A - B0 A0); alpha keeps s. Raises ModelError where rounding was part of the start.
    """
    changed, options = dict(tensors), copy.deepcopy(model.peft_config[_ADAPTER])
    assert isinstance(options, LoraConfig)
    for name, layer in _layers(model):
        if _METHOD not in vars(layer):
            continue
        if hasattr(STARTS.load(str(vars(layer)[_METHOD])), "residual"):
            raise ModelError("pissa_convert: a start that rounds the base is no plain adapter; remove pissa_convert")
        down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        changed[down] = torch.cat([tensors[down].float(), -layer.get_buffer("start_A").to(tensors[down].device)])
        changed[up] = torch.cat([tensors[up].float(), layer.get_buffer("start_B").to(tensors[up].device)], dim=1)
        options.lora_alpha = layer.scaling[_ADAPTER] * 2 * layer.r[_ADAPTER]
    if _state(model):
        options.r, options.use_rslora = 2 * options.r, False
    return changed, options


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Adapted linear layers by name; embeddings and fused weights keep PEFT's own start."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and _ADAPTER in module.lora_A and not hasattr(module, "parameter_name"):
            yield name, module


def _matrices(layer: LoraLayer) -> tuple[nn.Linear, nn.Linear]:
    return layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]


def _weight(name: str, layer: LoraLayer, quantization: Quantization | None) -> Tensor:
    """The base weight [out, in] in fp32; of a quantized base the plain one it was made from. Raises CheckpointError."""
    base = layer.get_base_layer()
    if quantization is None:
        weight = base.weight.detach().float()
        return weight.T if layer.fan_in_fan_out else weight
    assert quantization.folder is not None, "starts that need plain weights are refused on stored quantized ones"
    weight = read_tensor(quantization.folder, f"{name.removeprefix(_PREFIX)}.weight").float()
    return (weight if weight.shape == (layer.out_features, layer.in_features) else weight.T).to(base.weight.device)


def _shape_alone(layer: LoraLayer) -> Tensor:
    """[out, in] without values: starts that need those, and do not round, are refused on a quantized base."""
    return torch.empty(layer.out_features, layer.in_features, device="meta")


@dataclass(frozen=True, slots=True)
class _Start:
    """The first values of one layer: A0 [rank, in], B0 [out, rank], and how the base was changed with them."""

    method: str
    rounding: str
    down: Tensor
    up: Tensor


def _take_out(layer: LoraLayer, plain: Tensor, start: _Start, quantization: Quantization | None) -> None:
    """Change the base weight and remember the first values with the layer, outside of its saved state."""
    base = layer.get_base_layer()
    down, up = start.down.to(plain.device), start.up.to(plain.device)
    delta = layer.scaling[_ADAPTER] * up @ down
    residual: Residual = getattr(STARTS.load(start.method), "residual", _difference)
    if quantization is None:
        changed = residual(plain, delta, start.rounding)
        base.weight.data = (changed.T if layer.fan_in_fan_out else changed).contiguous().to(base.weight.dtype)
    else:
        same = quantization.describe() == start.rounding  # then the layer itself rounds
        changed = plain - delta if same else residual(plain, delta, start.rounding)
        _quantize_again(base, changed, quantization)
    layer.register_buffer("start_A", down, persistent=False)
    layer.register_buffer("start_B", up, persistent=False)
    setattr(layer, _METHOD, start.method)
    setattr(layer, _ROUNDING, start.rounding)


def _quantize_again(base: nn.Module, weight: Tensor, quantization: Quantization) -> None:
    """Put `weight` into a quantized layer, in place. Raises ModelError where the method cannot do that."""
    replace_weight = getattr(QUANTIZERS.load(quantization.method), "replace_weight", None)
    if replace_weight is None or not replace_weight(base, weight):
        raise ModelError(
            "adapter_name_or_path: this adapter took its first values out of the base, and a base held as "
            f"{quantization.describe()} cannot be changed; use bnb with quantization_bit: 4, or none"
        )


def _difference(weight: Tensor, delta: Tensor, rounding: str) -> Tensor:
    del rounding
    return weight - delta


def _fill(values: Tensor, like: Tensor) -> Tensor:
    """`values` in the shape of `like`, with zeros where a small weight has fewer components than the rank."""
    full = torch.zeros(like.shape, device=values.device)
    full[: values.shape[0], : values.shape[1]] = values
    return full


def _state(model: nn.Module) -> dict[str, Tensor]:
    found = [(name, layer) for name, layer in _layers(model) if _METHOD in vars(layer)]
    return {f"{name}.{part}": layer.get_buffer(f"start_{part}") for name, layer in found for part in "AB"}
