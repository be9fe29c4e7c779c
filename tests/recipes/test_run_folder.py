"""The output folder of a run: whose it is, and what happens to the files of an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llamafactory.config import RunConfig, load_config
from llamafactory.errors import ConfigError
from llamafactory.recipes import run_folder
from llamafactory.training import checkpointing


def config_for(folder: Path, **options: object) -> RunConfig:
    given = {"model_name_or_path": "model", "dataset": "numbers", "do_train": True, "output_dir": str(folder)}
    return load_config(given | options, command="train")


def test_an_earlier_run_is_set_aside_although_an_older_one_was_thrown_away(tmp_path: Path) -> None:
    for number in (2, 3):
        (tmp_path / f"previous_run-{number}").mkdir()
        (tmp_path / f"previous_run-{number}" / "model.safetensors").write_text(str(number), encoding="utf-8")
    for weights in ("4", "5"):
        (tmp_path / "model.safetensors").write_text(weights, encoding="utf-8")
        run_folder.prepare(config_for(tmp_path, overwrite_output_dir=True))
    kept = {path.parent.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*/model.safetensors")}
    assert kept == {f"previous_run-{number}": text for number, text in ((1, "4"), (2, "2"), (3, "3"), (4, "5"))}


@pytest.mark.parametrize("name", ["taken", "taken/below"])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match=r"output_dir: '.*taken.*' cannot be written as a folder .*choose another"):
        run_folder.prepare(config_for(tmp_path / name))


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after a complete checkpoint."""
    run_folder.prepare(config_for(tmp_path))
    stage = checkpointing.staging_folder(tmp_path, 1)
    checkpointing.begin(stage)
    (stage / "adapter_model.safetensors").write_text("weights", encoding="utf-8")
    facts = checkpointing.Facts(
        step=1, resumable=True, native=True, world_size=1, global_batch_size=1, num_examples=1, seed=42
    )
    checkpointing.commit(stage, tmp_path / "checkpoint-1", facts)
    return tmp_path


def test_a_recipe_of_a_release_with_fewer_options_goes_on(interrupted: Path) -> None:
    recipe = yaml.safe_load((interrupted / "recipe.yaml").read_text(encoding="utf-8"))
    del recipe["lora_rank"]
    recipe["option_of_the_past"] = 1
    (interrupted / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert run_folder.prepare(config_for(interrupted)).checkpoint == interrupted / "checkpoint-1"
    with pytest.raises(ConfigError, match=r"\(lora_rank: 8 -> 4\)"):
        run_folder.prepare(config_for(interrupted, lora_rank=4))


def test_options_of_other_commands_do_not_tell_runs_apart(interrupted: Path) -> None:
    config = config_for(interrupted, export_dir="elsewhere", vllm_maxlen=7)
    assert run_folder.prepare(config).checkpoint == interrupted / "checkpoint-1"
