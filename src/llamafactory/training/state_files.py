"""State of a run as safetensors and JSON: no pickle, so loading a checkpoint never runs code.

A nested value (dicts, lists, tuples, tensors, arrays, plain values) becomes one safetensors file: the tensors as they
are, the structure as JSON in the file's metadata. Knows no optimizer and no trainer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llamafactory.errors import CheckpointError

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"


def save_state(path: Path, value: object) -> None:
    """Write a nested value. Raises CheckpointError for a value that only pickle could store."""
    tensors: dict[str, Tensor] = {}
    structure = _pack(value, tensors, path.name)
    save_file(tensors, path, metadata={"structure": json.dumps(structure)})


def load_state(path: Path) -> object:
    """Read what `save_state` wrote; tensors on the CPU, dtypes and Python numbers exactly as saved."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "structure" not in metadata:
            raise CheckpointError(f"{path}: holds no saved state; it was written by another program")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _unpack(json.loads(metadata["structure"]), tensors)


def save_plain(path: Path, value: object) -> None:
    """Write a nested value without tensors of more than one number as JSON."""
    tensors: dict[str, Tensor] = {}
    structure = _pack(value, tensors, path.name)
    numbers = {name: tensor.item() for name, tensor in tensors.items() if tensor.numel() == 1}
    if len(numbers) < len(tensors):
        raise CheckpointError(
            f"{path.name}: a state with tensors cannot be saved as JSON; choose another lr_scheduler_type"
        )
    path.write_text(json.dumps(_inline(structure, numbers), indent=2), encoding="utf-8")


def load_plain(path: Path) -> object:
    """Read what `save_plain` wrote."""
    return _unpack(json.loads(path.read_text(encoding="utf-8")), {})


def _inline(value: Json, numbers: Mapping[str, float]) -> Json:
    if isinstance(value, list):
        return [_inline(item, numbers) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return numbers[str(value["tensor"])]
    return {key: _inline(item, numbers) for key, item in value.items()}


def _pack(value: object, tensors: dict[str, Tensor], where: str) -> Json:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if type(value) in (Tensor, torch.nn.Parameter):
        return {"tensor": _store(value, tensors)}  # type: ignore[arg-type]
    if isinstance(value, np.ndarray):
        stored = _store(torch.from_numpy(value.astype(np.int64 if value.dtype.kind in "iu" else value.dtype)), tensors)
        return {"array": stored, "dtype": value.dtype.name}
    if isinstance(value, np.generic):
        return _pack(value.item(), tensors, where)
    if isinstance(value, list):
        return [_pack(item, tensors, where) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors, where) for item in value]}
    if isinstance(value, Mapping):
        return {"dict": [[_pack(key, tensors, where), _pack(item, tensors, where)] for key, item in value.items()]}
    raise CheckpointError(
        f"{where}: a value of type {type(value).__name__} cannot be saved, because only tensors and plain values are "
        "stored (never pickle); set save_only_model: true, or choose another optim or lr_scheduler_type"
    )


def _store(tensor: Tensor, tensors: dict[str, Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return name


def _unpack(value: Json, tensors: Mapping[str, Tensor]) -> object:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[str(value["tensor"])]
    if "array" in value:
        return tensors[str(value["array"])].numpy().astype(str(value["dtype"]))
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in cast("list[Json]", value["tuple"]))
    pairs = cast("list[list[Json]]", value["dict"])
    return {_unpack(key, tensors): _unpack(item, tensors) for key, item in pairs}


def random_state() -> dict[str, object]:
    """The state of every random number generator of this process."""
    state: dict[str, object] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        state["device"] = torch.get_device_module(device).get_rng_state()
    return state


def restore_random_state(state: Mapping[str, object]) -> None:
    """Continue the random numbers where `random_state` was taken; a device that is absent now is left out."""
    random.setstate(state["python"])  # type: ignore[arg-type]
    np.random.set_state(state["numpy"])  # type: ignore[arg-type]
    torch.set_rng_state(state["torch"])  # type: ignore[arg-type]
    if "device" in state and torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).set_rng_state(state["device"])


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Load a state dict and keep the dtype of every saved tensor.

    torch casts floating-point state to the dtype of the weights, which would lose fp32 statistics of bf16 weights.
    """
    optimizer.load_state_dict(state)  # type: ignore[arg-type]
    saved = state["state"]
    assert isinstance(saved, Mapping)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        for name, value in (saved.get(number) or {}).items():
            live = optimizer.state[parameter].get(name)
            if isinstance(value, Tensor) and isinstance(live, Tensor) and live.dtype != value.dtype:
                optimizer.state[parameter][name] = value.to(live.device)
