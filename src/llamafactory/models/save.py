"""Writing a model or an adapter as an artefact folder, and reading it back at once to see that everything is there.

Weights are safetensors. Knows no template: the caller gives the chat template as text and the stop tokens as ids.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from llamafactory.errors import CheckpointError
from llamafactory.models.build import repair_generation
from llamafactory.models.record import BaseRecord, write_record
from llamafactory.models.safetensors_file import folder_shapes
from llamafactory.models.start import START_FILE, as_plain, save_start
from llamafactory.models.value_head import detached, head_state, save_value_head, split_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_FILE = "adapter_model.safetensors"
_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How to write.

    max_shard_gb: largest weight file. dtype: cast floating point weights of a full model; None keeps them. stop_ids:
    all ids that end an answer. chat_template: Jinja text. plain_adapter: write an
    adapter that started from the base's values as one of twice the rank on the plain base.
    padding_side: written into the tokenizer's configuration.
    """

    max_shard_gb: float = 5.0
    dtype: torch.dtype | None = None
    stop_ids: tuple[int, ...] = ()
    chat_template: str | None = None
    plain_adapter: bool = False
    padding_side: Literal["left", "right"] | None = None


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    record: BaseRecord,
    options: SaveOptions | None = None,
) -> None:
    """Write weights or adapter, tokenizer, chat template and generation settings into `folder`.

    Raises CheckpointError when a trained tensor is not in the files afterwards.
    """
    options = options or SaveOptions()
    save_weights(model, folder, record=record, options=options)
    save_tokenizer(tokenizer, folder, options)


def save_weights(
    model: PreTrainedModel | PeftModel,
    folder: Path,
    *,
    record: BaseRecord,
    options: SaveOptions | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the weights alone (for checkpoints), a value head in a file of its own, and check them.

    state_dict: gathered weights where the live ones are sharded. Raises CheckpointError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = options or SaveOptions()
    gathered, gathered_head = (None, None) if state_dict is None else split_state(state_dict)
    with detached(model) as head:
        if isinstance(model, PeftModel):
            _write_adapter(model, folder, gathered, plain=options.plain_adapter)
            write_record(record, folder)
        else:
            _write_full(model, folder, options, gathered)
        if head is not None:
            save_value_head(gathered_head or head_state(head), folder)
    check_saved(model, folder, plain_adapter=options.plain_adapter)


def save_bare(model: PreTrainedModel | PeftModel, folder: Path, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """Write the weights as transformers and PEFT do, and beside an adapter the first values it started from.

    state_dict: gathered weights where the live ones are sharded.
    """
    model.save_pretrained(folder, **({} if state_dict is None else {"state_dict": dict(state_dict)}))
    if isinstance(model, PeftModel):
        save_start(model, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, options: SaveOptions | None = None) -> None:
    """Write the tokenizer, with the chat template and padding side of `options`; the object is not changed."""
    options = options or SaveOptions()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    if options.chat_template is not None:
        (folder / "chat_template.jinja").write_text(options.chat_template, encoding="utf-8")
    if options.padding_side is not None:
        file = folder / "tokenizer_config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        content["padding_side"] = options.padding_side
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_adapter(model: PeftModel, folder: Path, state_dict: Mapping[str, Tensor] | None, *, plain: bool) -> None:
    # The embeddings that learn are in modules_to_save; asking PEFT to guess would make it ask the hub.
    tensors = get_peft_model_state_dict(
        model, state_dict=dict(state_dict) if state_dict else None, adapter_name=_ADAPTER, save_embedding_layers=False
    )
    options = copy.deepcopy(model.peft_config[_ADAPTER])
    if plain:
        tensors, options = as_plain(model, tensors)
        (folder / START_FILE).unlink(missing_ok=True)
    else:
        save_start(model, folder)
    owned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(owned, folder / ADAPTER_FILE, metadata={"format": "pt"})
    options.inference_mode = True
    options.save_pretrained(folder)


def _write_full(
    model: PreTrainedModel, folder: Path, options: SaveOptions, state_dict: Mapping[str, Tensor] | None
) -> None:
    tensors = dict(state_dict) if state_dict is not None else None
    if options.dtype is not None:
        tensors = _cast(tensors or model.state_dict(), options.dtype)
    use_cache = model.config.use_cache
    model.config.use_cache = True  # training switches it off; whoever loads the model wants it
    try:
        model.save_pretrained(folder, state_dict=tensors, max_shard_size=f"{options.max_shard_gb}GB")
    finally:
        model.config.use_cache = use_cache
    if options.dtype is not None:
        _declare_dtype(folder / "config.json", options.dtype)
    _write_generation(model, folder, options.stop_ids)


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast floating point tensors; tensors that share memory share it afterwards."""
    done: dict[int, Tensor] = {}
    return {
        name: done.setdefault(tensor.data_ptr(), tensor.to(dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _declare_dtype(file: Path, dtype: torch.dtype) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    content["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_generation(model: PreTrainedModel, folder: Path, stop_ids: tuple[int, ...]) -> None:
    generation = copy.deepcopy(model.generation_config)
    if generation is None:
        return
    if stop_ids:
        generation.eos_token_id = list(dict.fromkeys(stop_ids))
    repair_generation(generation)
    generation.save_pretrained(folder)


def check_saved(model: PreTrainedModel | PeftModel, folder: Path, *, plain_adapter: bool = False) -> None:
    """Compare names and shapes of all trained parameters with the files in `folder`.

    Sharded parameters count with their full shape; of a converted adapter only the names count. Raises
    CheckpointError.
    """
    shapes = folder_shapes(folder)
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if isinstance(model, PeftModel):
        wanted = {_saved_name(name): _full_shape(parameter) for name, parameter in trained}
    else:
        wanted = {name: _full_shape(parameter) for name, parameter in trained}
        if not set(wanted) <= set(shapes):
            _check_elements(model, shapes, folder)  # some families are stored under other names than they live
            return
    for name, shape in wanted.items():
        if shapes.get(name) != shape and not (plain_adapter and name in shapes):
            raise CheckpointError(
                f"{folder}: the trained tensor {name} should be saved with shape {list(shape)}, found "
                f"{list(shapes[name]) if name in shapes else 'nothing'}; the save is incomplete, do not use it"
            )


def _saved_name(name: str) -> str:
    """Name of an adapter parameter in the file: without the adapter's name."""
    name = name.replace(f".modules_to_save.{_ADAPTER}.", ".").replace(f".{_ADAPTER}.", ".")
    name = name.removesuffix(f".{_ADAPTER}")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def _full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 leaves an empty local tensor


def _check_elements(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    saved = sum(torch.Size(shape).numel() for shape in shapes.values())
    live = sum(torch.Size(_full_shape(parameter)).numel() for parameter in model.parameters())
    if saved < live:
        raise CheckpointError(
            f"{folder}: {live} parameters live in the model, but only {saved} were saved; "
            "the save is incomplete, do not use it"
        )
