"""`RunConfig`: derived answers, equality, and the mapping that is written beside a result."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from llamafactory.config import RunConfig, load_config
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.finetuning import FinetuningConfig
from llamafactory.config.sections.preference import PreferenceConfig

BASE: dict[str, object] = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}


@pytest.mark.parametrize(
    ("given", "precision"),
    [({}, "fp32"), ({"bf16": True}, "bf16"), ({"fp16": True}, "fp16"), ({"pure_bf16": True}, "pure_bf16")],
)
def test_precision(given: dict[str, object], precision: str) -> None:
    assert load_config({**BASE, **given}).precision == precision


@pytest.mark.parametrize(
    ("given", "packs"),
    [
        ({}, False),
        ({"stage": "pt"}, True),
        ({"stage": "pt", "packing": False}, False),
        ({"packing": True}, True),
        ({"neat_packing": True}, True),
    ],
)
def test_packing_left_out_means_pretraining_packs(given: dict[str, object], packs: bool) -> None:
    assert load_config({**BASE, **given}).packs is packs


def test_reference_is_needed_where_the_loss_compares() -> None:
    def config(stage: str, loss: str = "sigmoid") -> RunConfig:
        return RunConfig(
            finetuning=FinetuningConfig(stage=stage),  # type: ignore[arg-type]
            preference=PreferenceConfig(pref_loss=loss),  # type: ignore[arg-type]
        )

    assert config("dpo").uses_reference and config("kto").uses_reference
    assert not config("dpo", "orpo").uses_reference and not config("sft").uses_reference


def test_origin_is_no_part_of_equality() -> None:
    config = load_config(BASE)
    assert dataclasses.replace(config, notices=("x",), origins={}) == config
    assert dataclasses.replace(config, data=DataConfig(dataset=("other",))) != config


@pytest.mark.parametrize("only_changed", [True, False])
def test_written_mapping_loads_to_an_equal_config(only_changed: bool) -> None:
    given = {
        **BASE,
        "lora_target": "a,b",
        "eval_delay": 1,
        "lr_scheduler_kwargs": {"x": 1},
        "fsdp": "full_shard offload",
    }
    config = load_config(given)
    text = yaml.safe_dump(config.to_yaml_dict(only_changed=only_changed))
    assert load_config(yaml.safe_load(text)) == config


def test_secrets_are_left_out_unless_asked_for() -> None:
    config = load_config({**BASE, "hf_hub_token": "hush", "hub_token": "hush", "swanlab_api_key": "hush"})
    assert "hush" not in str(config.to_yaml_dict())
    assert str(config.to_yaml_dict(redact=False)).count("hush") == 3
    inner = load_config({**BASE, "vllm_config": {"api_key": "hush", "dtype": "auto", "x": [{"hub_token": "hush"}]}})
    assert inner.to_yaml_dict()["vllm_config"] == {"dtype": "auto", "x": [{}]}


def test_only_changed_holds_little() -> None:
    assert set(load_config(BASE).to_yaml_dict(only_changed=True)) == set(BASE)


def test_mapping_holds_the_keys_of_its_command() -> None:
    assert "task" not in load_config(BASE).to_yaml_dict()
    assert "output_dir" not in load_config({"model_name_or_path": "m"}, "chat").to_yaml_dict()
