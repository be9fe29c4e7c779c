"""Reward models in the trainer: how a batch is split changes nothing, and the head travels with the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tests.training.models import pairs, tiny_model, with_lora
from tests.training.runs import UNEVEN, logged, make_trainer, run_config, same, weights
from tests.training.test_splits import close, run_group
from torch import nn

from llamafactory.errors import CheckpointError
from llamafactory.models.value_head import attach_value_head, freeze_for_ranking
from llamafactory.objectives.rm import Ranking
from llamafactory.training.predictions import PREDICTIONS_FILE, predict_pairs
from llamafactory.training.trainer import Trainer
from llamafactory.training.weight_files import load_weights, verify_weights

# 20 pairs in global batches of 8: the last update of each epoch has 4.
BASE: dict[str, object] = {"stage": "rm", "max_steps": 6, "weight_decay": 0.1, "learning_rate": 1e-3}


def reward_model(*, lora: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = tiny_model()
    model = with_lora(model) if lora else model
    attach_value_head(model, trainable=True)
    freeze_for_ranking(model)
    return model


def reward_trainer(folder: Path, model: nn.Module | None = None, **options: object) -> Trainer:
    return make_trainer(
        run_config(folder, **{**BASE, **options}),
        reward_model() if model is None else model,
        train=pairs(UNEVEN),
        evals={"validation": pairs(UNEVEN[:7])},
        objective=Ranking(),
    )


def split(size: int, accumulation: int, layout: str = "padded") -> dict[str, object]:
    return {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "batch_layout": layout,
        "per_device_eval_batch_size": size,
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """The run that takes each global batch in one piece, with its predictions written."""
    trainer = reward_trainer(tmp_path_factory.mktemp("whole"), **split(8, 1))
    trainer.train()
    predict_pairs(trainer, [trainer.eval_dataset])
    return trainer


@pytest.mark.parametrize(("size", "accumulation", "layout"), [(2, 4, "padded"), (1, 8, "padded")])
def test_accumulation_changes_nothing(
    tmp_path: Path, whole: Trainer, size: int, accumulation: int, layout: str
) -> None:
    trainer = reward_trainer(tmp_path, **split(size, accumulation, layout))
    trainer.train()
    names = ("loss", "grad_norm", "accuracy", "rewards/chosen", "rewards/margins")
    assert close(logged(trainer, *names), logged(whole, *names))
    assert trainer.evaluate()["eval_accuracy"] == whole.evaluate()["eval_accuracy"]


@pytest.mark.slow
def test_two_processes_make_the_same_updates_and_predictions(tmp_path: Path, whole: Trainer) -> None:
    log = run_group(tmp_path / "group", 2, **BASE, **split(2, 2))
    assert close(log, logged(whole))
    evaluation = json.loads((tmp_path / "group" / "eval.json").read_text(encoding="utf-8"))
    expected = whole.evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_rewards/margins"):
        assert evaluation[name] == pytest.approx(expected[name], abs=1e-5)
    mine, theirs = (
        [json.loads(line) for line in (Path(folder) / PREDICTIONS_FILE).read_text(encoding="utf-8").splitlines()]
        for folder in (whole.args.output_dir, tmp_path / "group")
    )
    assert len(mine) == len(theirs) == 7
    for left, right in zip(mine, theirs, strict=True):
        assert left == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_head_is_saved_apart_checked_and_loaded(tmp_path: Path, lora: bool) -> None:
    model = reward_model(lora=lora)
    trainer = reward_trainer(tmp_path / "run", model, save_strategy="steps", save_steps=3)
    trainer.train()
    before = weights(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    folder = tmp_path / "run" / "checkpoint-6"
    load_weights(model, folder)
    assert same(weights(model), before)
    verify_weights(model, folder)
    (folder / "value_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"v_head\.summary\.weight.* missing"):
        verify_weights(model, folder)
    with pytest.raises(CheckpointError, match=r"value_head\.safetensors is missing, but this run trains a value head"):
        load_weights(model, folder)


def test_predictions_come_in_the_order_of_the_data(tmp_path: Path) -> None:
    trainer = reward_trainer(tmp_path, **split(3, 1))
    rows = pairs(UNEVEN[:8])
    predict_pairs(trainer, [Dataset.from_list(rows)])
    lines = (tmp_path / PREDICTIONS_FILE).read_text(encoding="utf-8").splitlines()
    for line, row in zip(lines, rows, strict=True):
        batch = trainer.data_collator([row])
        chosen, rejected = trainer.scorer(trainer.model, batch).values.tolist()
        assert json.loads(line) == pytest.approx({"chosen": chosen, "rejected": rejected}, abs=1e-5)
    results = json.loads((tmp_path / "predict_results.json").read_text(encoding="utf-8"))
    assert results["predict_samples"] == 8
