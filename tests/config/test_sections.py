"""The section models: every reference key exists once, defaults agree, values are typed and frozen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from llamafactory.config.catalog import options
from llamafactory.config.renamed import renamed_keys
from llamafactory.config.run import RunConfig, section_types
from llamafactory.config.sections.data import DataConfig
from llamafactory.config.sections.freeze import FreezeConfig
from llamafactory.config.sections.lora import LoraConfig
from llamafactory.config.sections.training import TrainingConfig

REFERENCE = json.loads((Path(__file__).parent / "reference_keys.json").read_text(encoding="utf-8"))
OUR_DEFAULTS = {"split_special_tokens"}


def test_every_reference_key_is_known() -> None:
    assert [key for key in REFERENCE if key not in options() and key not in renamed_keys()] == []


@pytest.mark.parametrize("key", [key for key in REFERENCE if key in options() and key not in OUR_DEFAULTS])
def test_default_is_that_of_the_reference(key: str) -> None:
    default = options()[key].default
    if isinstance(default, tuple):
        default = ",".join(default) or None
    assert default == REFERENCE[key]["default"]


def test_every_key_lives_in_one_section() -> None:
    homes: dict[str, list[str]] = {}
    for name, model in section_types().items():
        for key in model.model_fields:
            homes.setdefault(key, []).append(name)
    assert {key: names for key, names in homes.items() if len(names) > 1} == {}


def test_every_option_is_documented() -> None:
    assert [key for key, option in options().items() if not option.doc.endswith((".", ")")) and not option.doc] == []
    assert [model for model in section_types().values() if not model.title or not model.__doc__] == []


def test_defaults_pass_their_own_limits() -> None:
    for model in section_types().values():
        values = {name: info.default for name, info in model.model_fields.items()}
        assert model(**values) == model()


def test_sections_are_frozen_and_refuse_unknown_keys() -> None:
    with pytest.raises(ValidationError):
        DataConfig().cutoff_len = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        DataConfig(cutof_len=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("given", ["a, b", ["a", "b"], ("a", " b"), "a,,b,"])
def test_names_separated_by_commas_become_a_tuple(given: object) -> None:
    assert DataConfig(dataset=given).dataset == ("a", "b")  # type: ignore[arg-type]


def test_no_names_are_the_empty_tuple() -> None:
    assert DataConfig(dataset=None).dataset == DataConfig(dataset="").dataset == ()  # type: ignore[arg-type]


def test_probabilities_are_numbers() -> None:
    assert DataConfig(interleave_probs="0.1, 0.9").interleave_probs == (0.1, 0.9)  # type: ignore[arg-type]


def test_lora_alpha_left_out_is_twice_the_rank() -> None:
    assert LoraConfig(lora_rank=6).alpha == 12
    assert LoraConfig(lora_rank=6, lora_alpha=7).alpha == 7


def test_negative_layer_count_is_allowed() -> None:
    assert FreezeConfig(freeze_trainable_layers=-3).freeze_trainable_layers == -3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_learning_rate_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValidationError):
        TrainingConfig(learning_rate=value)


def test_steps_are_whole_or_a_share() -> None:
    assert TrainingConfig(save_steps=20.0).save_steps == 20
    assert isinstance(TrainingConfig(save_steps=20.0).save_steps, int)
    assert TrainingConfig(save_steps=0.25).save_steps == 0.25
    with pytest.raises(ValidationError, match="whole number of updates"):
        TrainingConfig(save_steps=2.5)


def test_tokens_seen_takes_truth_values() -> None:
    assert TrainingConfig(include_num_input_tokens_seen=True).include_num_input_tokens_seen == "all"  # type: ignore[arg-type]
    assert TrainingConfig(include_num_input_tokens_seen=False).include_num_input_tokens_seen == "no"  # type: ignore[arg-type]


def test_evaluation_strategy_means_evaluating() -> None:
    assert TrainingConfig(eval_strategy="steps").evaluates
    assert not TrainingConfig().evaluates


def test_default_run_config_is_complete() -> None:
    config = RunConfig()
    assert set(config.sections()) == set(section_types())
    assert config.precision == "fp32" and not config.packs and not config.uses_reference
