"""The output folder of a run: whose it is, and what happens to the files of an earlier one."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.config import RunConfig, load_config
from llamafactory.errors import ConfigError
from llamafactory.recipes import run_folder


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
