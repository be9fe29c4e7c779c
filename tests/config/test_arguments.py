"""Command-line words: every spelling of a key with a value."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.config import load_config
from llamafactory.config.arguments import split_arguments


def values(*words: str) -> dict[str, object]:
    _, given, faults = split_arguments(words)
    assert faults == []
    return {item.key: item.value for item in given}


@pytest.mark.parametrize(
    "words",
    [
        ["lora_rank=4"],
        ["lora-rank=4"],
        ["--lora_rank", "4"],
        ["--lora-rank", "4"],
        ["--lora_rank=4"],
        ["--lora-rank=4"],
    ],
)
def test_spellings_of_a_value(words: list[str]) -> None:
    assert values(*words) == {"lora_rank": "4"}


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--use_rslora"], "true"),
        (["--use-rslora", "false"], "false"),
        (["--use_rslora", "--do_train"], "true"),
        (["--use_rslora", "lora_rank=4"], "true"),
        (["--no_use_rslora"], "false"),
        (["--no-use-rslora"], "false"),
    ],
)
def test_switches(words: list[str], value: str) -> None:
    assert values(*words)["use_rslora"] == value


def test_switch_before_the_file_does_not_swallow_it() -> None:
    source, given, faults = split_arguments(["--do_train", "run.yaml", "--bf16"])
    assert source == Path("run.yaml") and faults == []
    assert [item.key for item in given] == ["do_train", "bf16"]


def test_negative_numbers_and_paths_are_values() -> None:
    assert values("--max_steps", "-1", "deepspeed=ds/z3.json") == {"max_steps": "-1", "deepspeed": "ds/z3.json"}
    assert values("--deepspeed", "z3.json") == {"deepspeed": "z3.json"}


def test_path_with_an_equals_sign_is_the_file() -> None:
    assert split_arguments(["runs/lr=1/run.yaml"])[0] == Path("runs/lr=1/run.yaml")


def test_value_keeps_its_own_equals_signs() -> None:
    assert values("optim_args=a=1,b=2") == {"optim_args": "a=1,b=2"}
    assert values("--optim_args", "a=1,b=2") == {"optim_args": "a=1,b=2"}


def test_list_takes_several_words() -> None:
    assert values("--dataset", "a", "b", "--do_train") == {"dataset": "a,b", "do_train": "true"}


def test_unknown_key_takes_its_value_with_it() -> None:
    assert values("--lora_rnak", "8", "bf16=true") == {"lora_rnak": "8", "bf16": "true"}


def test_old_key_that_starts_with_no_is_no_negation() -> None:
    assert values("--no_cuda") == {"no_cuda": "true"}


def test_key_without_value_is_a_fault() -> None:
    for words in (["--lora_rank"], ["--lora_rank", "--bf16"], ["--dataset"]):
        faults = split_arguments(words)[2]
        assert len(faults) == 1 and "has no value; write --" in faults[0]


def test_second_file_is_a_fault() -> None:
    faults = split_arguments(["a.yaml", "b.yaml"])[2]
    assert faults == ["argument 'b.yaml': is neither key=value nor --key value, and the file a.yaml was given before"]


BASE = ["model_name_or_path=m", "dataset=d", "do_train=true", "output_dir=o"]


def test_words_are_typed_by_their_key() -> None:
    config = load_config(
        [
            *BASE,
            "model_revision=007",
            "run_name=12",
            "--learning_rate=2e-5",
            "max_samples=1e3",
            "lr_scheduler_kwargs={min_lr: 1e-6}",
            "label_names=[a, b]",
            "save_total_limit=none",
            "resume_from_checkpoint=true",
            "eval_strategy=no",
            "adapter_folder=",
            "ref_model_quantization_bit=4",
            "include_num_input_tokens_seen=true",
        ]
    )
    assert config.hub.model_revision == "007" and config.training.run_name == "12"
    assert config.training.learning_rate == 2e-5 and config.data.max_samples == 1000
    assert config.training.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert config.training.extra["label_names"] == ["a", "b"]
    assert config.training.save_total_limit is None and config.model.adapter_folder is None
    assert config.training.resume_from_checkpoint is True and config.training.eval_strategy == "no"
    assert config.preference.ref_model_quantization_bit == 4
    assert config.training.include_num_input_tokens_seen == "all"


def test_dotted_key_changes_one_inner_value(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("lr_scheduler_kwargs: {min_lr: 1e-6, num_cycles: 1}\n", encoding="utf-8")
    config = load_config([str(path), *BASE, "lr_scheduler_kwargs.num_cycles=2", "--fsdp_config.a.b", "x"])
    assert config.training.lr_scheduler_kwargs == {"min_lr": 1e-6, "num_cycles": 2}
    assert config.training.fsdp_config == {"a": {"b": "x"}}
