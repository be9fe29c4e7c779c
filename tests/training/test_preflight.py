"""Optimizers, schedules, trackers and formats that cannot run are refused before a model is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.training.runs import run_config
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from llamafactory.errors import ConfigError, MissingPackageError
from llamafactory.training import preflight
from llamafactory.training.preflight import check_training

REFUSED: list[tuple[dict[str, object], str]] = [
    ({"lr_scheduler_kwargs": {"speed": 1}}, r"lr_scheduler_type: linear with .*unexpected keyword argument 'speed'"),
    (
        {"lr_scheduler_type": "cosine_with_min_lr"},
        r"min_lr_rate .* lr_scheduler_kwargs: \{min_lr_rate: 0.1\}",
    ),
    ({"optim_args": "fast"}, r"optim_args: got 'fast', expected names and values .* momentum=0.9"),
    ({"optim": "sgd", "optim_args": "momentum=a"}, "optim: sgd with optim_args: momentum=a: this optimizer cannot be"),
    ({"fp16": True}, "fp16: true needs a GPU"),
    ({"report_to": ("nonsense",)}, "report_to: nonsense cannot be used .* or write report_to: none"),
    ({"fsdp": "full_shard"}, "fsdp: one process alone has nothing to share .* FORCE_TORCHRUN=1"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_training(run_config(tmp_path, do_train=True, use_cpu=True, **options))


@pytest.mark.parametrize("name", [item.value for item in SchedulerType])
def test_every_schedule_runs_or_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    config = run_config(
        tmp_path, do_train=True, use_cpu=True, lr_scheduler_type=name, eval_strategy="steps", eval_steps=1
    )
    if "min_lr" not in name:
        assert check_training(config).lr_scheduler_type == name
        return
    with pytest.raises(ConfigError, match=rf"^default: lr_scheduler_type: {name}: .*; write for example [^\n]+$"):
        check_training(config)
    better = config.training.model_copy(update={"lr_scheduler_kwargs": {"min_lr_rate": 0.1}})
    check_training(run_config(tmp_path, **better.model_dump(include={"lr_scheduler_type", "lr_scheduler_kwargs"})))


@pytest.mark.parametrize("name", [item.value for item in OptimizerNames])
def test_every_optimizer_is_built_or_names_its_package(tmp_path: Path, name: str) -> None:
    config = run_config(tmp_path, do_train=True, use_cpu=True, optim=name)
    package = next((found for start, (found, _) in preflight._PACKAGES.items() if name.startswith(start)), None)
    if package is None or importlib.util.find_spec(package):
        ours = name.startswith(("galore", "apollo", "lomo", "adalomo"))
        assert check_training(config).optim == ("adamw_torch" if ours else name)
    else:
        with pytest.raises(MissingPackageError, match=rf"optim: {name} needs .*'{package}'.*pip install \S+$"):
            check_training(config)


def test_an_optimizer_of_ours_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = run_config(
        tmp_path, do_train=True, use_cpu=True, finetuning_type="full", use_galore=True, optim="adamw_8bit"
    )
    assert check_training(config).use_cpu


def test_a_missing_deepspeed_is_told(tmp_path: Path) -> None:
    if importlib.util.find_spec("deepspeed"):
        pytest.skip("deepspeed is installed")
    with pytest.raises(MissingPackageError, match=r"deepspeed needs the package .*pip install deepspeed"):
        check_training(run_config(tmp_path, use_cpu=True, deepspeed={"zero_optimization": {"stage": 2}}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim_args": "a=1"}, "optim_args: a=1 has no effect: optim: adamw_torch_fused reads none of these names"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}},
            "lr_scheduler_kwargs has no effect: the schedule constant takes none",
        ),
    ],
)
def test_arguments_nobody_reads_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object], message: str,
) -> None:  # fmt: skip
    said: list[str] = []
    monkeypatch.setattr(preflight.logger, "warning", lambda text, *values: said.append(text % values))
    check_training(run_config(tmp_path, do_train=True, use_cpu=True, **options))
    assert len(said) == 1 and message in said[0]


def test_arguments_that_are_read_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.logger, "warning", lambda *values: pytest.fail(str(values)))
    check_training(run_config(tmp_path, do_train=True, use_cpu=True, optim="sgd", optim_args="momentum=0.9"))
