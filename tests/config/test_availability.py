"""What this version cannot run is accepted by the schema and refused in one sentence each."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.config import availability, load_config, refuse_unavailable
from llamafactory.config.availability import Gap, gaps
from llamafactory.config.catalog import options
from llamafactory.errors import ConfigError

TRAIN: dict[str, object] = {"model_name_or_path": "m", "dataset": "d", "do_train": True, "output_dir": "o"}


def test_missing_part_is_named_with_its_place(tmp_path: Path) -> None:
    gap = next(
        gap
        for gap in gaps()
        if not gap.values and options()[gap.key].types == {"bool"} and not gap.commands and not gap.stages
    )
    path = tmp_path / "run.yaml"
    path.write_text(f"model_name_or_path: m\ndataset: d\ndo_train: true\noutput_dir: o\n{gap.key}: true\n", "utf-8")
    try:
        config = load_config(path)
    except ConfigError:  # this part also needs other settings
        config = load_config([str(path), "finetuning_type=full"])
    with pytest.raises(ConfigError) as caught:
        refuse_unavailable(config, "train")
    assert str(caught.value) == (
        f"{gap.key}: true at {path}:5 is accepted, but this version cannot run {gap.part} yet; remove {gap.key}"
    )


def test_missing_value_names_those_that_work() -> None:
    for gap in gaps():
        if gap.values and gap.key == "stage":
            stage = str(gap.values[0])
            config = load_config({**TRAIN, "stage": stage, "reward_model": "r"})
            with pytest.raises(ConfigError, match=f"stage: '{stage}' at options is accepted.*; available: pt, sft"):
                refuse_unavailable(config, "train")


def test_every_missing_part_is_told_at_once() -> None:
    config = load_config({**TRAIN, "use_unsloth": True, "quantization_bit": 4, "enable_liger_kernel": True})
    found = {"use_unsloth", "quantization_bit", "enable_liger_kernel"} & {gap.key for gap in gaps()}
    if not found:
        pytest.skip("all of these parts exist")
    with pytest.raises(ConfigError) as caught:
        refuse_unavailable(config, "train")
    assert {line.split(":")[0] for line in str(caught.value).splitlines()} == found


def test_plain_run_is_not_refused() -> None:
    refuse_unavailable(load_config(TRAIN), "train")
    refuse_unavailable(load_config({**TRAIN, "stage": "pt", "finetuning_type": "full"}), "train")


def test_a_part_missing_in_some_stages_is_refused_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    gap = Gap("do_predict", "prediction", stages=("sft",))
    monkeypatch.setattr(availability, "gaps", lambda: (gap,))
    predicting = {**TRAIN, "do_predict": True, "val_size": 4}
    refuse_unavailable(load_config({**predicting, "stage": "rm"}), "train")
    with pytest.raises(ConfigError, match=r"do_predict: true .* cannot run prediction yet in stage sft; remove"):
        refuse_unavailable(load_config({**predicting, "predict_with_generate": True}), "train")


def test_gap_of_another_command_does_not_matter() -> None:
    config = load_config({**TRAIN, "export_quantization_bit": 4})
    refuse_unavailable(config, "train")


def test_gaps_are_about_keys_and_values_that_exist() -> None:
    for gap in gaps():
        assert gap.part and gap.key in options()
        assert set(gap.values) <= set(options()[gap.key].choices)
