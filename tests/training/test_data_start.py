"""Starts of LoRA that look at data: what they measure, what they make of it, and that the base stays what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, LoraGAConfig, get_peft_model
from peft.tuners.lora.loraga import preprocess_loraga
from tests.training.models import examples, padded, tiny_model
from tests.training.runs import make_trainer, run_config

from llamafactory.errors import DataError
from llamafactory.models.adapters.starts import StartOptions, eva
from llamafactory.models.measure import weight_gradients
from llamafactory.models.start import adapted_layers, has_start
from llamafactory.training.data_start import start_from_data

LENGTHS = (9, 40, 24, 12, 33, 14)


def starting(tmp_path: Path, method: str, rows: list | None = None, **options: object) -> tuple:
    """A LoRA model on all linear layers, its trainer and the run, before the start."""
    torch.manual_seed(3)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    config = run_config(tmp_path, lora_init=method, disable_shuffling=True, **options)
    trainer = make_trainer(config, model, train=examples(LENGTHS) if rows is None else rows)
    return model, trainer, config


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 35)[None]).logits


@pytest.mark.parametrize("method", ["eva", "lora_ga"])
def test_a_start_from_data_changes_no_answer(tmp_path: Path, method: str) -> None:
    model, trainer, config = starting(tmp_path, method)
    plain = logits(tiny_model())
    start_from_data(trainer, config, None)
    assert (logits(model) - plain).abs().max() < 1e-5
    assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)
    assert all(value.grad is None for value in model.parameters())
    losses = [entry["loss"] for entry in (trainer.train(), trainer.state.log_history)[1] if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer.save_model()
    assert has_start(tmp_path) is (method == "lora_ga")


def test_eva_starts_in_the_space_of_the_supervised_inputs(tmp_path: Path) -> None:
    model, trainer, config = starting(tmp_path, "eva", lora_init_batches=3)
    layers, seen = dict(adapted_layers(model)), []
    name = next(name for name in layers if name.endswith("1.mlp.down_proj"))
    start_from_data(trainer, config, None)
    batch = padded(examples(LENGTHS))
    layers[name].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    logits(model)
    seen.clear()
    with torch.no_grad():
        model(**batch)
    rows = seen[0][batch["labels"] != -100]
    down = layers[name].lora_A["default"].weight.detach()
    best = torch.linalg.svd(rows, full_matrices=False)[2][:4]
    kept, largest = (rows @ down.T).square().sum(), (rows @ best.T).square().sum()
    assert kept > 0.97 * largest
    assert torch.allclose(down @ down.T, torch.eye(4), atol=1e-4)
    assert not layers[name].lora_B["default"].weight.any()


def test_lora_ga_sees_the_gradient_that_peft_sees() -> None:
    rows = examples(LENGTHS)
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    base, batch = tiny_model(), padded(rows)
    oracle = LoraConfig(init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig(), **options)
    preprocess_loraga(base, oracle, lambda: base(**batch).loss.backward())
    model = get_peft_model(tiny_model(), LoraConfig(**options))
    with weight_gradients(model) as found:
        model(**batch).loss.backward()
    for name, layer in adapted_layers(model):
        theirs = base.get_submodule(name.removeprefix("base_model.model."))._peft_loraga_grad
        assert torch.allclose(found[name], theirs, atol=1e-7)
        assert not layer.get_base_layer().weight.requires_grad


def test_lora_ga_takes_the_leading_directions_of_the_gradient(tmp_path: Path) -> None:
    model, trainer, config = starting(tmp_path, "lora_ga", lora_init_batches=3)
    reference = tiny_model()
    reference(**padded(examples(LENGTHS))).loss.backward()
    start_from_data(trainer, config, None)
    for name, layer in adapted_layers(model):
        plain = reference.get_submodule(name.removeprefix("base_model.model."))
        left, _, right = torch.linalg.svd(plain.weight.grad, full_matrices=False)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        length = plain.weight.shape[0] ** 0.5 / 16
        assert torch.allclose(down @ right[:4].T @ right[:4], down, atol=0.05)
        assert torch.allclose(down.T @ down, length * right[:4].T @ right[:4], atol=0.05)
        assert torch.allclose(up @ up.T, length * left[:, 4:8] @ left[:, 4:8].T, atol=0.1)
        assert torch.allclose(
            plain.weight - layer.scaling["default"] * up @ down, layer.get_base_layer().weight, atol=1e-6
        )


def test_batches_without_targets_are_told(tmp_path: Path) -> None:
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in examples(LENGTHS)]
    for method in ("eva", "lora_ga"):
        _, trainer, config = starting(tmp_path, method, rows)
        with pytest.raises(DataError, match=r"lora_init: \w+ looks at the first 3 batches, and no token in them"):
            start_from_data(trainer, config, None)


def test_the_first_batches_are_those_of_the_order(tmp_path: Path) -> None:
    _, trainer, _ = starting(tmp_path, "eva")
    batches = trainer.first_batches(2)
    assert [list(batch["input_ids"].shape) for batch in batches] == [[2, 40], [2, 24]]
    stream = Dataset.from_list(examples(LENGTHS)).to_iterable_dataset()
    _, trainer, _ = starting(tmp_path, "eva", stream, max_steps=2)
    assert torch.equal(trainer.first_batches(2)[1]["input_ids"], batches[1]["input_ids"])


def test_eva_leaves_no_row_dead_when_few_tokens_were_seen() -> None:
    summary = eva.fold(None, torch.randn(2, 8), 4)
    down, up = eva.factors(summary, 4, 1.0, StartOptions(-1, "nf4"))
    assert down.shape == (4, 8) and bool(down.norm(dim=1).gt(0.1).all()) and up.shape == (0, 4)
