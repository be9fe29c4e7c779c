"""Optimizers and schedules: the right one is chosen, and each of them makes two updates."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from tests.training.models import examples, tiny_model, with_lora
from tests.training.runs import logged, make_trainer, run_config, same, weights
from transformers import SchedulerType, TrainingArguments

from llamafactory.errors import ConfigError, MissingPackageError
from llamafactory.facts import read_facts
from llamafactory.optim import OPTIMIZERS, build_optimizer
from llamafactory.training.schedules import scheduler_arguments

ON_CPU = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
WITH_PACKAGE = {
    "bitsandbytes": (
        "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_32bit", "lion_8bit", "ademamix", "ademamix_8bit",
        "rmsprop_bnb", "rmsprop_bnb_8bit",
    ),
    "schedulefree": ("schedule_free_adamw", "schedule_free_sgd"),
}  # fmt: skip
OPTIONS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_with_restarts": {"num_cycles": 2},
}


def two_updates(folder: Path, **options: object) -> None:
    config = run_config(folder, max_steps=2, **options)
    trainer = make_trainer(config, evals={"v": examples((9,))})
    before = weights(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 2 and not same(before, weights(trainer.model))


@pytest.mark.parametrize("name", ON_CPU)
def test_optimizers_by_name(tmp_path: Path, name: str) -> None:
    two_updates(tmp_path, optim=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name"), [(package, name) for package in WITH_PACKAGE for name in WITH_PACKAGE[package]]
)
def test_optimizers_of_optional_packages(tmp_path: Path, package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    two_updates(tmp_path, optim=name)


@pytest.mark.parametrize("name", [item.value for item in SchedulerType])
def test_schedules_by_name(tmp_path: Path, name: str) -> None:
    extra = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    two_updates(tmp_path, lr_scheduler_type=name, lr_scheduler_kwargs=OPTIONS.get(name), **extra)


def test_warmup_stable_decay_splits_itself(tmp_path: Path) -> None:
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, lr_scheduler_type="warmup_stable_decay", warmup_steps=10
    )
    assert scheduler_arguments(args, 100) == {"num_decay_steps": 60}
    args.lr_scheduler_kwargs = {"num_decay_steps": 5}
    assert scheduler_arguments(args, 100) == {"num_decay_steps": 5}
    args.lr_scheduler_type = "cosine"
    args.lr_scheduler_kwargs = None
    assert scheduler_arguments(args, 100) == {}
    config = run_config(
        tmp_path, max_steps=14, warmup_steps=2, lr_scheduler_type="warmup_stable_decay", learning_rate=1.0, optim="sgd"
    )
    trainer = make_trainer(config)
    trainer.train()
    rates = [rate for _, rate in logged(trainer, "learning_rate")]
    assert rates[2:7] == pytest.approx([1.0] * 5) and rates[7] < 1.0 and rates[-1] < 0.1


def loraplus(folder: Path, model: object, **options: object) -> dict[str, tuple[float, float]]:
    config = run_config(folder, loraplus_lr_ratio=16.0, learning_rate=1e-3, weight_decay=0.1, **options)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True, learning_rate=1e-3, weight_decay=0.1)
    optimizer = build_optimizer(model, config, args)
    assert optimizer is not None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_loraplus_gives_each_matrix_its_rate(tmp_path: Path) -> None:
    targets = ["q_proj", "embed_tokens"]
    model = with_lora(tiny_model(), target_modules=targets, bias="lora_only")
    for name, parameter in model.named_parameters():
        if name.endswith("model.norm.weight"):
            parameter.requires_grad_(True)
    found = loraplus(tmp_path, model)
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, (rate, decay) in found.items():
        if "lora_embedding_B" in name:
            assert (rate, decay) == (1e-6, 0.1)
        elif "lora_B" in name:
            assert (rate, decay) == (pytest.approx(1.6e-2), 0.1)
        elif name.endswith("norm.weight"):
            assert (rate, decay) == (pytest.approx(1.6e-2), 0.0)
        else:
            assert "lora_A" in name or "lora_embedding_A" in name
            assert (rate, decay) == (1e-3, 0.1)


def test_loraplus_trains_and_needs_lora(tmp_path: Path) -> None:
    config = run_config(tmp_path, loraplus_lr_ratio=16.0)
    trainer = make_trainer(config, with_lora(tiny_model()))
    trainer.train()
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {1e-2, 0.16}
    with pytest.raises(ConfigError, match="loraplus_lr_ratio: there are no LoRA weights to train"):
        make_trainer(config).train()


def test_without_a_choice_the_library_decides(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert build_optimizer(tiny_model(), run_config(tmp_path), args) is None


def test_two_choices_are_an_error(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigError, match="optim: LoRA\\+ and Muon are both chosen, but a run has one optimizer"):
        build_optimizer(tiny_model(), run_config(tmp_path, loraplus_lr_ratio=2.0, use_muon=True), args)


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for name, words in (
        (
            "adamw_8bit",
            r"'bitsandbytes', which is not installed; install it with: pip install 'llamafactory\[bitsandby",
        ),
        ("schedule_free_adamw", "'schedulefree', which is not installed; install it with: pip install schedulefree"),
    ):
        with pytest.raises(MissingPackageError, match=f"optim: {name} needs the package {words}"):
            build_optimizer(tiny_model(), run_config(tmp_path, optim=name), args)


def test_every_optimizer_file_exports_its_contract() -> None:
    assert set(OPTIMIZERS.names()) == set(read_facts(OPTIMIZERS.package))
    for name in OPTIMIZERS.names():
        assert read_facts(OPTIMIZERS.package)[name] == OPTIMIZERS.load(name).FACTS
