"""What a folder that a run wrote contains: a full model or an adapter, its base, and the recipe that made it.

Lets `chat` and `export` start from the folder alone. Reads small files; loads no weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from llamafactory.errors import CheckpointError, ModelError
from llamafactory.models.hub import is_local
from llamafactory.models.record import read_record

RECIPE_FILE = "recipe.yaml"


@dataclass(frozen=True, slots=True)
class ArtefactInfo:
    """How to load an artefact.

    base_model: folder or hub id for model_name_or_path. adapters: for adapter_name_or_path, in order; empty for a full
    model. recipe: the options of the run that wrote it, None when there is no recipe.
    """

    base_model: str
    adapters: tuple[str, ...]
    recipe: Mapping[str, object] | None


def resolve_artefact(path: str | Path) -> ArtefactInfo:
    """Describe the artefact in folder `path` (an output folder, an export, or a checkpoint inside one).

    Raises ModelError when the folder holds no model, CheckpointError when its files are damaged.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ModelError(f"the folder {str(path)!r} does not exist (seen from {Path.cwd()}); give the folder of a run")
    folder = folder.resolve()
    recipe = _read_recipe(folder)
    if (folder / "adapter_config.json").is_file():
        record = read_record(folder)
        earlier = record.merged_adapters if record is not None else ()
        return ArtefactInfo(_base_of(folder), (*earlier, str(folder)), recipe)
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return ArtefactInfo(str(folder), (), recipe)
    inner = sorted(child.name for child in folder.glob("checkpoint-*"))
    hint = f"give one of {', '.join(inner[-3:])} inside it" if inner else "give the folder a finished run wrote"
    raise ModelError(
        f"{folder} holds neither a model (config.json and safetensors) nor an adapter (adapter_config.json); {hint}"
    )


def _read_recipe(folder: Path) -> Mapping[str, object] | None:
    places = [folder, folder.parent] if folder.name.startswith("checkpoint-") else [folder]
    file = next((place / RECIPE_FILE for place in places if (place / RECIPE_FILE).is_file()), None)
    if file is None:
        return None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{file}: expected the options of a run as YAML ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: expected a mapping of options, found {type(content).__name__}; restore the file"
        )
    return content


def _base_of(folder: Path) -> str:
    """Name of an adapter's base: a hub id, or a folder that exists."""
    file = folder / "adapter_config.json"
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: expected an adapter configuration that names its base ({error})") from error
    if not name:
        raise CheckpointError(
            f"{file}: base_model_name_or_path is empty; write the base model's folder or hub id there"
        )
    if not is_local(name):
        return str(name)
    for candidate in (Path(name).expanduser(), folder / name):
        if candidate.is_dir():
            return str(candidate.resolve())
    raise ModelError(
        f"{file}: the base model {name!r} is not there any more; put it back, or give its new place "
        "as model_name_or_path"
    )
