"""Model cards: metadata hubs can read, nothing that breaks out of it, no local paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llamafactory.config import load_config
from llamafactory.recipes.card import read_metadata, write_model_card

BASE = {"dataset": "identity", "output_dir": "out", "do_train": True, "template": "chatml"}


def card(folder: Path, command: str = "train", metrics: dict[str, object] | None = None, **options: object) -> str:
    base = BASE if command == "train" else {"export_dir": "x", "template": "chatml"}
    config = load_config({"model_name_or_path": "owner/tiny", **base, **options}, command=command)
    datasets = config.data.dataset if command == "train" else ()
    return write_model_card(folder, config, metrics or {}, datasets).read_text(encoding="utf-8")


def test_metadata_names_base_tags_datasets_and_licence(tmp_path: Path) -> None:
    text = card(tmp_path, dataset="owner/data,identity", learning_rate=1e-4)
    assert read_metadata(tmp_path) == {
        "library_name": "peft",
        "license": "other",
        "base_model": "owner/tiny",
        "tags": ["llama-factory", "lora", "sft"],
        "datasets": ["owner/data"],
        "pipeline_tag": "text-generation",
    }
    assert "| learning_rate | `0.0001` |" in text
    assert "`owner/data`, `identity`" in text
    assert "supervised fine-tuning (LoRA)" in text


def test_results_and_usage(tmp_path: Path) -> None:
    folder = tmp_path / "my-run"
    folder.mkdir()
    text = card(folder, metrics={"eval_loss": 1.23456789, "train_loss": 2, "note": "text", "flag": True})
    assert "| eval_loss | `1.23457` |" in text
    assert "| train_loss | `2` |" in text
    assert "note" not in text and "flag" not in text
    assert "llamafactory-cli chat my-run" in text


def test_the_licence_of_a_local_base_is_kept_and_its_path_is_not_told(tmp_path: Path) -> None:
    base = tmp_path / "secret place" / "base-model"
    base.mkdir(parents=True)
    front = {"license": "apache-2.0", "license_name": "x", "base_model": "owner/origin"}
    (base / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n# Base\n", encoding="utf-8")
    text = card(tmp_path, model_name_or_path=str(base))
    found = read_metadata(tmp_path)
    assert (found["license"], found["license_name"], found["base_model"]) == ("apache-2.0", "x", "owner/origin")
    assert "`base-model`" in text
    assert "secret place" not in text


@pytest.mark.parametrize("content", ["", "no front matter", "---\n: [\n---\n", "---\n- list\n---\n"])
def test_a_base_card_that_cannot_be_read_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content, encoding="utf-8")
    assert read_metadata(tmp_path) == {}
    assert read_metadata(tmp_path / "missing") == {}


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "run $(id) <script>"
    folder.mkdir()
    hostile = 'x|y`<script>alert(1)</script>\n---\ntags: ["owned"]'
    text = card(folder, default_system=hostile)
    assert read_metadata(folder)["tags"] == ["llama-factory", "lora", "sft"]
    row = next(line for line in text.splitlines() if line.startswith("| default_system"))
    assert row == '| default_system | `x\\|y\'<script>alert(1)</script> --- tags: ["owned"]` |'
    assert "# run __id_ _script_" in text
    assert "llamafactory-cli chat OUTPUT_DIR" in text
    assert text.count("<script>") == 1


def test_an_export_card_tells_what_was_merged(tmp_path: Path) -> None:
    text = card(tmp_path, command="export", adapter_name_or_path="owner/adapter")
    assert "`owner/tiny` with the adapters `owner/adapter` merged into it" in text
    assert read_metadata(tmp_path)["library_name"] == "transformers"
    assert "Settings" not in text


def test_a_reward_model_has_no_chat_section(tmp_path: Path) -> None:
    assert "## Chat" not in card(tmp_path, stage="rm")
