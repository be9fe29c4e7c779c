"""Options for using what a run wrote, from its folder alone: `chat saves/run` needs no other word.

Reads the recipe and two small JSON files; knows no weights. What a folder says about trust is not believed.
"""

from __future__ import annotations

import json
from pathlib import Path

from llamafactory.config.catalog import options
from llamafactory.config.files import read_file
from llamafactory.config.given import Given
from llamafactory.config.section import TRAIN
from llamafactory.errors import ConfigError

RECIPE_FILE = "recipe.yaml"
_SECTIONS = {"hub", "vocab", "template", "media", "compute", "quantization", "generation", "vllm", "sglang"}
_KEYS = {"rope_scaling", "cutoff_len", "stage", "finetuning_type", "infer_dtype", "low_cpu_mem_usage", "offload_folder"}
_NEVER = {"trust_remote_code", "allow_pickle_weights"}
_DONE_BY_TRAINING = {
    "model_revision", "resize_vocab", "add_tokens", "add_special_tokens", "new_special_tokens_config",
    "init_special_tokens", "rope_scaling", "quantization_bit", "quantization_method",
}  # fmt: skip


def read_run_folder(folder: Path, command: str) -> list[Given]:
    """Return the options that `command` needs to use the model or adapter in `folder`.

    Raises ConfigError when the command trains, or when the folder holds neither.
    """
    if command in TRAIN and command != "predict":
        raise ConfigError(f"{folder}: is a folder, and {command!r} needs a .yaml or .json file; name the file in it")
    place = str(folder)
    if (folder / "adapter_config.json").is_file():
        adapters = (*_merged_before(folder), place)
        own = {"model_name_or_path": _base_of(folder), "adapter_name_or_path": ",".join(adapters)}
        dropped: set[str] = set()
    elif (folder / "config.json").is_file():
        own, dropped = {"model_name_or_path": place}, _DONE_BY_TRAINING
    else:
        raise ConfigError(f"{folder}: holds neither adapter_config.json nor config.json; give the folder of a run")
    kept = [item for item in _recipe(folder) if _is_kept(item.key) and item.key not in dropped]
    if command == "export":  # an adapter is merged into plain weights, whatever it was trained on
        kept = [item for item in kept if options()[item.key].section != "quantization"]
    return [*kept, *(Given(key, value, value, place) for key, value in own.items())]


def _is_kept(key: str) -> bool:
    option = options().get(key)
    return option is not None and key not in _NEVER and (option.section in _SECTIONS or key in _KEYS)


def _recipe(folder: Path) -> list[Given]:
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    for place in places:
        if (place / RECIPE_FILE).is_file():
            return read_file(place / RECIPE_FILE)
    return []


def _base_of(folder: Path) -> str:
    """The base model an adapter names: a hub id, or a folder as seen from here or from the adapter."""
    name = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{folder / 'adapter_config.json'}: base_model_name_or_path is empty; add model_name_or_path=FOLDER"
        )
    return str(folder / name) if not Path(name).exists() and (folder / name).is_dir() else name


def _merged_before(folder: Path) -> tuple[str, ...]:
    """Adapters that were merged into the base before this one was made."""
    file = folder / "base_record.json"
    names = _read_json(file).get("merged_adapters") if file.is_file() else None
    return tuple(str(name) for name in names) if isinstance(names, list) else ()


def _read_json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{file}: is damaged ({error}); write the adapter again") from error
    return content if isinstance(content, dict) else {}
