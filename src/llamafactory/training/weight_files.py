"""Weights in a checkpoint folder: are they all there after a save, and back into the live model on resume.

Knows PEFT and transformers file names; knows no trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from llamafactory.errors import CheckpointError
from llamafactory.models.start import refuse_other_start
from llamafactory.models.value_head import VALUE_HEAD_FILE, detached, head_state, restore_value_head

ADAPTER_FILE = "adapter_model.safetensors"


def verify_weights(model: nn.Module, folder: Path) -> None:
    """Re-open the saved weights and compare them with the model. Raises CheckpointError when something is missing.

    Adapters are compared by name and shape, whole models by their number of values: some are saved under other names.
    """
    with detached(model) as head:
        lost = _lost(model, saved_shapes(folder))
    if head is not None:
        lost += _missing(head_state(head), _shapes(folder / VALUE_HEAD_FILE))
    if lost:
        raise CheckpointError(
            f"{folder.name}: the saved weights are incomplete ({', '.join(lost[:3])} missing or of another shape); "
            "training stops here, because later checkpoints would be as useless"
        )


def _lost(model: nn.Module, saved: Mapping[str, tuple[int, ...]]) -> list[str]:
    if isinstance(model, PeftModel):
        wanted = get_peft_model_state_dict(model, adapter_name=_adapter(model), save_embedding_layers=False)
        return _missing(wanted, saved)
    live, stored = _num_values(model), sum(torch.Size(shape).numel() for shape in saved.values())
    return [] if live == stored else [f"{live - stored} of {live} values"]


def _missing(wanted: Mapping[str, Tensor], saved: Mapping[str, tuple[int, ...]]) -> list[str]:
    return [name for name, value in wanted.items() if saved.get(name) != tuple(value.shape)]


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor in the weight files of a folder, without a value head; reads headers only."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _weight_files(folder):
        shapes |= _shapes(path)
    return shapes


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def load_weights(model: nn.Module, folder: Path) -> None:
    """Copy the saved weights into the live model, in place. Raises CheckpointError unless they fit exactly."""
    files = _weight_files(folder)
    if not files:
        raise CheckpointError(f"{folder}: holds no safetensors weights; pickled weights are never loaded")
    state: dict[str, Tensor] = {}
    for path in files:
        state |= load_file(path)
    with detached(model) as head:
        _load(model, state, folder)
        if head is not None:
            restore_value_head(head, folder)


def _load(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    if isinstance(model, PeftModel):
        _load_adapter(model, state, folder)
    elif _fits(model, state):
        model.load_state_dict(state, strict=False)
    elif isinstance(model, PreTrainedModel):
        # Some architectures are saved under the names of their original release; only their loader can read them back.
        converted = type(model).from_pretrained(folder, config=model.config, dtype=torch.float32)
        model.load_state_dict(converted.state_dict())
    else:
        raise CheckpointError(f"{folder}: the saved weights do not fit {type(model).__name__}")


def _weight_files(folder: Path) -> list[Path]:
    adapter = folder / ADAPTER_FILE
    return [adapter] if adapter.is_file() else sorted(folder.glob("model*.safetensors"))


def _adapter(model: PeftModel) -> str:
    return str(model.active_adapters[0])


def _load_adapter(model: PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    wanted = get_peft_model_state_dict(model, adapter_name=_adapter(model), save_embedding_layers=False)
    lost = [name for name, value in wanted.items() if name not in state or state[name].shape != value.shape]
    if lost:
        raise CheckpointError(
            f"{folder}: the saved adapter does not fit this run ({lost[0]} is missing or of another shape); "
            "resume with the finetuning settings it was trained with"
        )
    refuse_other_start(model, folder)
    set_peft_model_state_dict(model, state, adapter_name=_adapter(model))


def _fits(model: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether names agree, apart from tied weights, which are saved once."""
    live = model.state_dict()
    present = {live[name].data_ptr() for name in state if name in live}
    return state.keys() <= live.keys() and all(value.data_ptr() in present for value in live.values())


def _num_values(model: nn.Module) -> int:
    """Values of all weights and saved buffers, tied ones counted once."""
    unique = {value.data_ptr(): value.numel() for value in model.state_dict().values()}
    return sum(unique.values())
