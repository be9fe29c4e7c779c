"""Adapters on disk: finding their folders and putting them onto a base, whichever method made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftConfig, PeftModel
from peft.utils import ModulesToSaveWrapper

from llamafactory.errors import ModelError
from llamafactory.models.hub import fetch
from llamafactory.models.merge import merge_adapters
from llamafactory.models.record import read_record
from llamafactory.models.safetensors_file import folder_shapes, tensor_shapes
from llamafactory.models.start import has_start, take_up_start
from llamafactory.models.targets import embedding_paths
from llamafactory.models.vocab import NewRows, grow_vocab, num_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig


def attach_given(model: PreTrainedModel, config: RunConfig) -> PreTrainedModel | PeftModel:
    """Merge all given adapters but the last, and attach that one for inference without merging it."""
    folders = adapter_folders(config)
    for folder in folders[:-1]:
        model = merge_adapters(attach(model, folder, trainable=False))
    return attach(model, folders[-1], trainable=False) if folders else model


def adapter_folders(config: RunConfig) -> list[Path]:
    """Local folders of the given adapters, in order, downloaded and checked."""
    folders = [
        fetch(name, config.hub, key="adapter_name_or_path", folder=config.model.adapter_folder)
        for name in config.model.adapter_name_or_path
    ]
    for folder in folders:
        if not (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"adapter_name_or_path: {folder} holds no adapter_config.json, so it is not an adapter; give a full "
                "model as model_name_or_path"
            )
    return folders


def attach(model: PreTrainedModel, folder: Path, *, trainable: bool, full_precision: bool = True) -> PeftModel:
    """Load the adapter in `folder` onto `model`, growing its vocabulary to the adapter's.

    full_precision: adapter weights in fp32 on a narrower base. Raises ModelError, CheckpointError for a damaged file.
    """
    folder_shapes(folder)  # a damaged file is told by name
    grow_vocab(model, _saved_rows(model, folder), NewRows())
    try:
        wrapped = PeftModel.from_pretrained(
            model,
            str(folder),
            is_trainable=trainable,
            config=_options(folder),
            autocast_adapter_dtype=full_precision,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(_mismatch(folder, model, error)) from error
    _check_all_used(wrapped, folder)
    tie_copies(wrapped)
    take_up_start(wrapped, folder)
    return wrapped


def tie_copies(model: PeftModel) -> None:
    """Let the trained copies of input and output embedding share one weight where the originals do, in place."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(inputs, ModulesToSaveWrapper) or not isinstance(head, ModulesToSaveWrapper):
        return
    if inputs.original_module.weight is head.original_module.weight:
        for name, copy in inputs.modules_to_save.items():
            head.modules_to_save[name].weight = copy.weight


def _options(folder: Path) -> PeftConfig:
    """PEFT's options of the adapter; a start that we stored is not made again by PEFT."""
    options = PeftConfig.from_pretrained(str(folder))
    if has_start(folder):
        options.init_lora_weights = True
    return options


def _saved_rows(model: PreTrainedModel, folder: Path) -> int:
    """Rows of vocabulary an adapter was trained with: as recorded, else as its saved embedding shows."""
    record = read_record(folder)
    if record is not None:
        return record.vocab_size
    file = folder / "adapter_model.safetensors"
    shapes = tensor_shapes(file) if file.is_file() else {}
    stems = [f"base_model.model.{name}" for name in embedding_paths(model)]
    return max(shapes.get(f"{stem}{end}", (0,))[0] for stem in stems for end in (".weight", ".base_layer.weight"))


def _mismatch(folder: Path, model: PreTrainedModel, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = next((line for line in lines if "size mismatch" in line), lines[0] if lines else type(error).__name__)
    return (
        f"adapter_name_or_path: {folder} does not fit this {model.config.model_type} model with {num_rows(model)} rows "
        f"of vocabulary ({detail}); give the base model it was trained on"
    )


def _check_all_used(model: PeftModel, folder: Path) -> None:
    """Raise ModelError unless every tensor of the adapter file found its place in the model."""
    from peft import get_peft_model_state_dict

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        return
    known = {*get_peft_model_state_dict(model, save_embedding_layers=False), *model.state_dict()}
    # PEFT writes further copies of embeddings under names of its own; the ones that count are in `known`.
    lost = sorted(name for name in set(tensor_shapes(file)) - known if ".modules_to_save." not in name)
    if lost:
        raise ModelError(
            f"adapter_name_or_path: {folder} holds {len(lost)} tensors this model has no place for, such as {lost[0]}; "
            "give the base model it was trained on"
        )
