"""An artefact folder says by itself how it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory.errors import CheckpointError, ModelError
from llamafactory.models.artefact import resolve_artefact
from llamafactory.models.record import BaseRecord, write_record


def adapter(folder: Path, base: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_full_model(model_dir: Path) -> None:
    info = resolve_artefact(model_dir)
    assert (info.base_model, info.adapters, info.recipe) == (str(model_dir), (), None)


def test_adapter_with_recipe(model_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "run", str(model_dir))
    (folder / "recipe.yaml").write_text("template: llama3\nlora_rank: 8\n")
    info = resolve_artefact(folder)
    assert (info.base_model, info.adapters) == (str(model_dir), (str(folder),))
    assert info.recipe == {"template": "llama3", "lora_rank": 8}


def test_checkpoint_uses_the_recipe_of_its_run(model_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "run" / "checkpoint-10", str(model_dir))
    (tmp_path / "run" / "recipe.yaml").write_text("template: llama3\n")
    assert resolve_artefact(folder).recipe == {"template": "llama3"}
    with pytest.raises(ModelError, match="give one of checkpoint-10 inside it"):
        resolve_artefact(tmp_path / "run")


def test_adapters_merged_before(model_dir: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "run", str(model_dir))
    write_record(BaseRecord(str(model_dir), 600, merged_adapters=("first", "second")), folder)
    assert resolve_artefact(folder).adapters == ("first", "second", str(folder))


def test_hub_base_and_relative_base(tmp_path: Path) -> None:
    assert resolve_artefact(adapter(tmp_path / "a", "org/name")).base_model == "org/name"
    folder = adapter(tmp_path / "b", "./base")
    (folder / "base").mkdir()
    assert resolve_artefact(folder).base_model == str(folder / "base")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        resolve_artefact(tmp_path / "none")
    with pytest.raises(ModelError, match=r"holds neither a model .* nor an adapter"):
        resolve_artefact(tmp_path)
    with pytest.raises(ModelError, match="the base model '/gone' is not there any more"):
        resolve_artefact(adapter(tmp_path / "a", "/gone"))
    with pytest.raises(CheckpointError, match="base_model_name_or_path is empty"):
        resolve_artefact(adapter(tmp_path / "b", ""))
    folder = adapter(tmp_path / "c", "org/name")
    (folder / "recipe.yaml").write_text("!!python/object/apply:os.system ['echo']")
    with pytest.raises(CheckpointError, match="expected the options of a run as YAML"):
        resolve_artefact(folder)
    (folder / "recipe.yaml").write_text("- a list")
    with pytest.raises(CheckpointError, match="expected a mapping of options, found list"):
        resolve_artefact(folder)
    (folder / "recipe.yaml").unlink()
    (folder / "base_record.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected the record of an adapter's base"):
        resolve_artefact(folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "base_record.json").unlink()
    with pytest.raises(CheckpointError, match="expected an adapter configuration that names its base"):
        resolve_artefact(folder)
