"""Preference and feedback stages on the trainer: splits, references, resuming, learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from tests.training.models import feedback_examples, pair_examples, tiny_model, with_lora
from tests.training.runs import logged, make_trainer, run_config, same, weights
from tests.training.test_resume import Crash, CrashAt
from tests.training.test_splits import BASE, close, run_group
from torch import nn

from llamafactory.errors import CheckpointError, ConfigError
from llamafactory.objectives import STAGES
from llamafactory.training.reference import FrozenCopy
from llamafactory.training.trainer import Trainer

# 10 pairs in updates of 4: the last update of each epoch has 2.
PAIRS = [(3 + 5 * (index % 4), 2 + index % 5, 1 + index % 3) for index in range(10)]
LOSSES: dict[str, dict[str, object]] = {
    "dpo": {"stage": "dpo", "pref_ftx": 0.1},
    "kto_pair": {"stage": "dpo", "pref_loss": "kto_pair"},
    "bco": {"stage": "dpo", "pref_bco_weight": 0.5, "ld_alpha": 0.5},
    "orpo": {"stage": "orpo"},
    "simpo": {"stage": "simpo", "pref_beta": 2.0},
    "kto": {"stage": "kto", "kto_rejected_weight": 2.0, "pref_ftx": 0.1},
}
NAMES = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "logits/rejected")


def preference_trainer(folder: Path, model: nn.Module | None = None, **options: object) -> Trainer:
    """A trainer of a preference stage on toy pairs or judgements, which are its evaluation set too."""
    callbacks: Any = options.pop("callbacks", ())
    given = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2} | options
    config = run_config(folder, **given)
    stage = config.finetuning.stage
    rows = feedback_examples([shape[:2] for shape in PAIRS]) if stage == "kto" else pair_examples(PAIRS)
    objective = STAGES.load(stage).build(config)
    return make_trainer(config, model, train=rows, evals={"v": rows[:5]}, objective=objective, callbacks=callbacks)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFACTORY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", LOSSES)
def test_splitting_an_update_changes_nothing(tmp_path: Path, name: str) -> None:
    logs = []
    for size, accumulation in ((4, 1), (1, 4)):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        split |= {"learning_rate": 2e-3}  # Adam makes much of the rounding of small gradients
        trainer = preference_trainer(tmp_path / str(size), **LOSSES[name], **split)
        trainer.train()
        logs.append(logged(trainer, *NAMES))
    assert len(logs[0]) == 5 and close(logs[0], logs[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_two_processes_change_nothing(tmp_path: Path, name: str) -> None:
    options = BASE | LOSSES[name] | {"max_steps": 4, "gradient_accumulation_steps": 1}
    alone = preference_trainer(tmp_path / "alone", **options, per_device_train_batch_size=4)
    alone.train()
    group = run_group(tmp_path / "group", 2, **options, per_device_train_batch_size=2, preference=True)
    assert close(group, logged(alone))
    assert list((tmp_path / "cache" / "tokenized").iterdir())


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_every_way_to_a_reference_gives_the_same_update(tmp_path: Path, stage: str) -> None:
    logs = []
    for way, precompute in (("copy", False), ("stored", None), ("stored again", True)):
        trainer = preference_trainer(tmp_path / way, stage=stage, precompute_ref_logps=precompute)
        assert isinstance(trainer.scorer.reference, FrozenCopy) is (way == "copy")
        trainer.train()
        metrics = trainer.evaluate()
        logs.append([*logged(trainer, *NAMES), tuple(metrics[f"eval_{name}"] for name in NAMES[2:])])
    assert close(logs[0], logs[1]) and logs[1] == logs[2]


def test_adapters_are_switched_off_or_stored(tmp_path: Path) -> None:
    logs = []
    for precompute in (False, True):
        model = with_lora(tiny_model())
        trainer = preference_trainer(tmp_path / str(precompute), model, stage="dpo", precompute_ref_logps=precompute)
        assert (trainer.scorer.reference is None) is precompute
        trainer.train()
        logs.append(logged(trainer, *NAMES))
    assert close(logs[0], logs[1])
    assert logs[0][0][3] != 0  # the adapter is not zero, so the policy differs from its reference at once


def test_what_is_stored_belongs_to_weights_and_tokens(tmp_path: Path) -> None:
    def entries() -> int:
        return len(list((tmp_path / "cache" / "tokenized").iterdir()))

    preference_trainer(tmp_path / "a", stage="dpo")
    assert entries() == 2  # training and evaluation set
    preference_trainer(tmp_path / "b", stage="dpo", pref_beta=0.5, pref_loss="ipo", seed=7)
    assert entries() == 2
    preference_trainer(tmp_path / "c", with_lora(tiny_model()), stage="dpo", precompute_ref_logps=True)
    other = tiny_model()
    with torch.no_grad():
        other.lm_head.weight[5, 5] += 1
    preference_trainer(tmp_path / "d", other, stage="dpo")
    assert entries() == 6


def test_reference_is_scored_in_every_step_where_that_is_cheaper(tmp_path: Path) -> None:
    once = preference_trainer(tmp_path / "once", with_lora(tiny_model()), stage="dpo", max_steps=2)
    assert once.scorer.reference is not None
    often = preference_trainer(tmp_path / "often", with_lora(tiny_model()), stage="dpo", max_steps=6)
    assert often.scorer.reference is None


def test_a_stream_cannot_be_scored_beforehand(tmp_path: Path) -> None:
    def stream() -> Any:
        yield from pair_examples(PAIRS)

    config = run_config(tmp_path, stage="dpo", max_steps=2)
    objective = STAGES.load("dpo").build(config)
    trainer = make_trainer(config, train=IterableDataset.from_generator(stream), objective=objective)
    trainer.train()
    assert trainer.state.global_step == 2 and trainer.scorer.reference is not None
    config = run_config(tmp_path, stage="dpo", precompute_ref_logps=True)
    with pytest.raises(ConfigError, match=r"precompute_ref_logps: true, but a stream has no fixed rows.*remove it"):
        make_trainer(config, train=IterableDataset.from_generator(stream), objective=objective)


@pytest.mark.parametrize("name", ["dpo", "bco", "kto"])
def test_resuming_is_exact(tmp_path: Path, name: str) -> None:
    def trainer(folder: str, *callbacks: Any) -> Trainer:
        options = LOSSES[name] | {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
        return preference_trainer(tmp_path / folder, with_lora(tiny_model()), callbacks=callbacks, **options)

    straight = trainer("straight")
    straight.train()
    with pytest.raises(Crash):
        trainer("halted", CrashAt(3)).train()
    resumed = trainer("halted")
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == 2
    assert logged(resumed, *NAMES) == logged(straight, *NAMES)
    assert same(weights(resumed.model), weights(straight.model))


@pytest.mark.parametrize("name", LOSSES)
def test_margins_rise(tmp_path: Path, name: str) -> None:
    options = LOSSES[name] | {"max_steps": 30, "learning_rate": 5e-3}
    trainer = preference_trainer(tmp_path, **options)
    before, _ = trainer.evaluate(), trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_rewards/margins"] > before["eval_rewards/margins"] + 0.1
    if name != "kto":
        assert after["eval_rewards/accuracies"] == 1.0


def test_one_class_of_judgements_trains_without_nan(tmp_path: Path) -> None:
    rows = [row | {"desirable": True} for row in feedback_examples([shape[:2] for shape in PAIRS])]
    config = run_config(tmp_path, stage="kto", max_steps=3)
    trainer = make_trainer(config, train=Dataset.from_list(rows), objective=STAGES.load("kto").build(config))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["loss"] > 0 and "rewards/chosen" in entry and "kl" in entry
    assert not {"rewards/rejected", "rewards/margins"} & entry.keys()


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    model = with_lora(tiny_model(attention_dropout=0.3), lora_dropout=0.5)
    preference_trainer(tmp_path, model, stage="dpo")
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert model.base_model.model.model.layers[0].self_attn.attention_dropout == 0.0


def test_the_shift_of_bco_is_the_mean_of_the_rewards_the_loss_sees(tmp_path: Path) -> None:
    """Also where the loss weighs tokens: after the first update, delta is not that of the plain sums."""
    options = {"stage": "dpo", "pref_bco_weight": 0.5, "ld_alpha": 0.0, "max_steps": 3, "learning_rate": 0.05}
    trainer = preference_trainer(tmp_path, per_device_train_batch_size=10, gradient_accumulation_steps=1, **options)
    trainer.train()
    rewards = [sum(pair) / 2 for _, *pair in logged(trainer, "rewards/chosen", "rewards/rejected")]
    seen = trainer.preparation.state()["seen"]  # type: ignore[union-attr]
    assert (seen[0] / seen[1]).item() == pytest.approx(sum(rewards) / len(rewards), rel=1e-4)
    assert abs(rewards[-1]) > 1e-2


def test_a_checkpoint_without_running_means_is_refused_in_one_sentence(tmp_path: Path) -> None:
    saves = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    preference_trainer(tmp_path, stage="dpo", **saves).train()
    other = preference_trainer(tmp_path, stage="dpo", pref_bco_weight=0.5, **saves | {"max_steps": 4})
    with pytest.raises(CheckpointError, match="whose loss kept no running means"):
        other.train(resume_from_checkpoint=True)
