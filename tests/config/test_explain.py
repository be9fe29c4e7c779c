"""Words about options: the resolved config, the help of a command, the JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from llamafactory.config import load_config
from llamafactory.config.availability import gaps
from llamafactory.config.catalog import options, options_of
from llamafactory.config.explain import build_schema, describe_config, describe_options, guess_command

BASE = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}


def test_changed_values_are_marked_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, "lora_rank": 4, "lora_dropout": 0.0}, sort_keys=False), encoding="utf-8")
    text = describe_config(load_config([str(path), "warmup_ratio=0.5"]))
    lines = {line.split(":")[0].strip("* "): line for line in text.splitlines()}
    assert lines["lora_rank"].startswith("* lora_rank: 4 ") and lines["lora_rank"].endswith(f"{path}:5")
    assert lines["lora_dropout"].startswith("  lora_dropout: 0 ") and lines["lora_dropout"].endswith(f"{path}:6")
    assert lines["lora_target"] == "  lora_target: all"
    assert lines["warmup_steps"].endswith("argument 'warmup_ratio'")
    assert "lora scale: alpha 8, rank 4" in text and "precision: fp32" in text
    assert f"Notice: {path}: old names were translated: warmup_ratio is now warmup_steps" in text
    assert "APOLLO" in text and "  apollo_rank" not in text


def test_everything_shows_untouched_sections_too() -> None:
    text = describe_config(load_config(BASE), everything=True)
    keys = {line[2:].split(":")[0] for line in text.splitlines() if line[:2] in {"* ", "  "}}
    assert set(options_of("train")) <= keys


def test_secrets_are_hidden() -> None:
    text = describe_config(load_config({**BASE, "hf_hub_token": "hush", "vllm_config": {"api_key": "hush", "a": 1}}))
    assert '* vllm_config: {"a": 1}' in text
    assert "* hf_hub_token: (hidden)" in text and "hush" not in text


def test_missing_parts_are_warnings() -> None:
    key = next(
        gap.key for gap in gaps() if not gap.values and options()[gap.key].types == {"bool"} and not gap.commands
    )
    text = describe_config(load_config({**BASE, "finetuning_type": "full", key: True}))
    assert f"Warning: {key}: true at options is accepted, but this version cannot run" in text


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("do_train: true", "train"),
        ("learning_rate: 1.0e-4", "train"),
        ("dataset: d", "train"),
        ("export_dir: e", "export"),
        ("task: mmlu_test", "eval"),
        ("template: llama3", "chat"),
    ],
)
def test_command_is_told_by_the_keys(tmp_path: Path, text: str, command: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: m\n{text}\n", encoding="utf-8")
    assert guess_command([str(path)]) == command
    assert guess_command([text.replace(": ", "=")]) == command
    assert guess_command([str(tmp_path)]) == "chat"


@pytest.mark.parametrize("command", ["train", "chat", "export", "eval"])
def test_help_names_every_key_of_a_command_and_no_other(command: str) -> None:
    text = describe_options(command)
    named = {line.split()[0][2:] for line in text.splitlines() if line.startswith("  --")}
    assert named == set(options_of(command))


def test_help_tells_type_default_and_unit() -> None:
    text = " ".join(describe_options("train").split())
    assert (
        "--cutoff_len N Longest example; longer ones are handled as truncation says. Unit: tokens. Default: 2048."
        in text
    )
    assert "--mix_strategy concat|interleave_under|interleave_over|interleave_once" in text
    assert "--lora_target A,B" in text and "Default: all." in text


def test_schema_describes_every_key() -> None:
    schema = json.loads(json.dumps(build_schema()))
    properties = schema["properties"]
    assert set(options()) <= set(properties) and schema["additionalProperties"] is False
    assert properties["cutoff_len"] == {
        "description": "Data: Longest example; longer ones are handled as truncation says. Unit: tokens.",
        "type": ["integer"],
        "exclusiveMinimum": 0,
        "default": 2048,
    }
    assert properties["stage"]["enum"] == ["pt", "sft", "rm", "ppo", "dpo", "kto", "orpo", "simpo"]
    assert properties["dataset"]["type"] == ["array", "null", "string"]
    assert "cosine" in properties["lr_scheduler_type"]["enum"]
    assert properties["warmup_ratio"]["deprecated"] is True
    assert True in properties["include_num_input_tokens_seen"]["enum"]
    assert "default" not in properties["hf_hub_token"]
