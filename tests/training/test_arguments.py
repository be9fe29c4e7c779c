"""Options become the library's arguments, with one sentence for what cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tests.training.models import examples, tiny_model
from tests.training.runs import make_trainer, run_config

from llamafactory.errors import ConfigError, MissingPackageError
from llamafactory.training.arguments import build_training_arguments
from llamafactory.training.build import choose_layout
from llamafactory.training.isolation import check_isolation

on_cpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")


def test_our_defaults(tmp_path: Path) -> None:
    args = build_training_arguments(run_config(tmp_path, adam_beta2=0.95, torch_empty_cache_steps=7))
    assert args.adam_beta2 == 0.95 and args.torch_empty_cache_steps == 7
    assert args.report_to == [] and not args.remove_unused_columns and not args.logging_nan_inf_filter
    assert args.output_dir == str(tmp_path)


@on_cpu
def test_without_an_accelerator_the_cpu_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = build_training_arguments(run_config(tmp_path, bf16=True))
    assert args.use_cpu and args.bf16 and args.device.type == "cpu" and not args.dataloader_pin_memory
    pure = build_training_arguments(run_config(tmp_path, pure_bf16=True, bf16=True))
    assert not pure.bf16


@on_cpu
@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_formats_a_cpu_lacks_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: true needs a GPU, and this run uses the CPU.*remove {name}"):
        build_training_arguments(run_config(tmp_path, **{name: True}))


def test_options_that_exclude_each_other_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the training options cannot be combined: .*load_best_model_at_end"):
        build_training_arguments(run_config(tmp_path, load_best_model_at_end=True, save_strategy="epoch"))


def test_evaluation_needs_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval_strategy: steps needs evaluation data.*set eval_dataset or val_size"):
        make_trainer(run_config(tmp_path, eval_strategy="steps", eval_steps=1))
    with pytest.raises(ConfigError, match="early_stopping_steps counts evaluations, and eval_strategy is no"):
        make_trainer(run_config(tmp_path, early_stopping_steps=2), evals={"v": examples((5,))})


def test_plots_need_matplotlib_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MissingPackageError, match=r"plot_loss: true needs the package 'matplotlib'.*llamafactory\[plot\]"
    ):
        make_trainer(run_config(tmp_path, plot_loss=True))


def test_the_flat_layout_is_for_variable_length_kernels(tmp_path: Path) -> None:
    model = tiny_model()
    assert choose_layout(run_config(tmp_path), model) == "padded"
    assert choose_layout(run_config(tmp_path, batch_layout="flat"), model) == "flat"
    model.config._attn_implementation = "flash_attention_2"
    assert choose_layout(run_config(tmp_path), model) == "flat"


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packing_that_isolates_is_accepted(attention: str, flat: bool) -> None:
    for family in ("llama", "qwen3", "gemma3_text", "mixtral"):
        model = tiny_model(family, attn_implementation=attention).train()
        check_isolation(model, flat=flat)
        assert model.training


def test_packing_that_leaks_is_refused(tmp_path: Path) -> None:
    model = tiny_model("bloom")
    with pytest.raises(ConfigError, match=r"packing: bloom with the attention .* lets packed examples see each other"):
        check_isolation(model, flat=True)
    with pytest.raises(ConfigError, match="packing: bloom"):
        make_trainer(run_config(tmp_path, packing=True), model)


def test_a_model_without_positions_cannot_pack() -> None:
    class Plain(torch.nn.Module):
        """Takes ids alone."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model()
            self.config = self.inner.config

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> object:
            return self.inner(input_ids=input_ids, use_cache=use_cache)

    with pytest.raises(ConfigError, match=r"packing: Plain takes no position ids"):
        check_isolation(Plain(), flat=True)


def test_uploads_are_not_the_trainers_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = run_config(tmp_path, push_to_hub=True, hub_model_id="someone/something", hub_strategy="every_save")
    assert not build_training_arguments(config).push_to_hub
    assert "hub_strategy has no effect: the finished run is uploaded once" in caplog.text


def test_only_known_arguments_reach_the_library(tmp_path: Path) -> None:
    config = run_config(tmp_path, predict_with_generate=True)
    names = {item.name for item in dataclasses.fields(build_training_arguments(config))}
    assert "predict_with_generate" not in names
