"""The folder of a run is enough to use what it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llamafactory.config import load_config
from llamafactory.errors import ConfigError

RECIPE: dict[str, object] = {
    "model_name_or_path": "base",
    "dataset": "d",
    "do_train": True,
    "output_dir": "o",
    "template": "chatml",
    "enable_thinking": False,
    "cutoff_len": 99,
    "rope_scaling": "yarn",
    "trust_remote_code": True,
    "allow_pickle_weights": True,
    "num_train_epochs": 7,
    "val_size": 5,
    "add_tokens": "a,b",
}


def write_run(folder: Path, *, adapter: bool) -> Path:
    """A folder as a run leaves it, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = load_config(RECIPE).to_yaml_dict()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    name, content = ("adapter_config.json", {"base_model_name_or_path": "base"}) if adapter else ("config.json", {})
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_adapter_folder_names_its_base(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", adapter=True)
    config = load_config([str(folder), "temperature=0.1"], "chat")
    assert config.model.model_name_or_path == "base"
    assert config.model.adapter_name_or_path == (str(folder),)
    assert config.template.template == "chatml" and config.template.enable_thinking is False
    assert config.data.cutoff_len == 99 and config.model.rope_scaling == "yarn"
    assert config.vocab.add_tokens == ("a", "b") and config.generation.temperature == 0.1
    assert config.data.dataset == () and config.notices == ()


def test_full_model_folder_is_the_model(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", adapter=False)
    config = load_config(folder, "chat")
    assert config.model.model_name_or_path == str(folder) and config.model.adapter_name_or_path == ()
    assert config.model.rope_scaling is None and config.vocab.add_tokens == ()
    assert config.template.template == "chatml"


def test_folder_is_not_believed_about_trust(tmp_path: Path) -> None:
    config = load_config(write_run(tmp_path / "run", adapter=True), "chat")
    assert not config.hub.trust_remote_code and not config.hub.allow_pickle_weights


def test_checkpoint_uses_the_recipe_beside_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run", adapter=False)
    checkpoint = tmp_path / "run" / "checkpoint-10"
    checkpoint.mkdir()
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}', encoding="utf-8")
    config = load_config(checkpoint, "chat")
    assert config.template.template == "chatml" and config.model.adapter_name_or_path == (str(checkpoint),)


def test_adapters_merged_before_are_loaded_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", adapter=True)
    (folder / "base_record.json").write_text('{"merged_adapters": ["first"]}', encoding="utf-8")
    assert load_config(folder, "chat").model.adapter_name_or_path == ("first", str(folder))


def test_base_beside_the_adapter_is_found(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", adapter=True)
    (folder / "base").mkdir()
    assert load_config(folder, "chat").model.model_name_or_path == str(folder / "base")


def test_folder_without_recipe_is_enough(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    config = load_config([str(tmp_path), f"export_dir={tmp_path / 'out'}"], "export")
    assert config.model.model_name_or_path == str(tmp_path)


@pytest.mark.parametrize(
    ("files", "command", "words"),
    [
        ({}, "chat", "holds neither adapter_config.json nor config.json"),
        ({"config.json": "{}"}, "train", "is a folder, and 'train' needs a .yaml or .json file"),
        ({"adapter_config.json": "{}"}, "chat", "base_model_name_or_path is empty; add model_name_or_path=FOLDER"),
        ({"adapter_config.json": "{"}, "chat", "is damaged"),
    ],
)
def test_unusable_folder_is_refused(tmp_path: Path, files: dict[str, str], command: str, words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path, command)
    assert words in str(caught.value)
