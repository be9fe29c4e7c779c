"""Using what a run wrote when it is named as a model: `model_name_or_path: saves/run`.

The folder's recipe supplies template, base model and adapters; what the user gave wins. Knows configurations and
folders, no weights.
"""

from __future__ import annotations

from pathlib import Path

from llamafactory.config import RunConfig, load_config
from llamafactory.config.artefact import RECIPE_FILE, read_run_folder


def complete(config: RunConfig) -> RunConfig:
    """Return the config with the options of the run folder that `model_name_or_path` names filled in.

    Anything else (a hub id, a plain model, a config read from a run folder) comes back unchanged.
    """
    folder = Path(config.model.model_name_or_path or "").expanduser()
    if not config.model.model_name_or_path or config.source_file == folder or not _is_run_folder(folder):
        return config
    every = config.to_yaml_dict(redact=False)
    given = {key: every[key] for key in config.origins if key in every and key != "model_name_or_path"}
    recipe = {item.key: item.value for item in read_run_folder(folder, config.command)}
    before = recipe.get("adapter_name_or_path")
    if before and given.get("adapter_name_or_path"):
        given["adapter_name_or_path"] = [before, *config.model.adapter_name_or_path]
    return load_config({**recipe, **given}, command=config.command)


def _is_run_folder(folder: Path) -> bool:
    inside = (folder / "adapter_config.json").is_file()
    return inside or ((folder / RECIPE_FILE).is_file() and (folder / "config.json").is_file())
