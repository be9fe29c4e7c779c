"""Rounds of experience: when answers are sampled, what is whitened, and that no way to split or resume changes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.ppo_runs import ppo_trainer, share_low
from tests.training.runs import logged, same, weights
from tests.training.test_resume import Crash, CrashAt
from tests.training.test_splits import close
from torch import Tensor

from llamafactory.errors import CheckpointError
from llamafactory.training.rollout import Rollout
from llamafactory.training.samplers import FixedSampler, RoundSampler
from llamafactory.training.trainer import Trainer

NAMES = ("loss", "grad_norm", "reward", "kl", "policy_loss", "value_loss")


def rollout_of(trainer: Trainer) -> Rollout:
    assert isinstance(trainer.preparation, Rollout)
    return trainer.preparation


def recorded(trainer: Trainer) -> list[list[dict[str, Tensor]]]:
    """The batches of every update, filled in as the trainer runs."""
    found: list[list[dict[str, Tensor]]] = []
    prepare = trainer._prepare_batches

    def record(batches: list[Any], *, training: bool) -> list[Any]:
        found.append(prepare(batches, training=training))
        return found[-1]

    trainer._prepare_batches = record  # type: ignore[method-assign]
    return found


def test_rounds_are_passed_over_and_filled_up() -> None:
    sampler = RoundSampler(FixedSampler(range(5)), round_size=4, num_passes=2)
    assert list(sampler) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 4, 0, 1, 2]
    assert len(sampler) == 16
    assert list(RoundSampler(FixedSampler([7]), round_size=3, num_passes=1)) == [7, 7, 7]


def test_a_round_is_answered_once_and_learned_from_several_times(tmp_path: Path) -> None:
    calls: list[int] = []

    def score(sequence: Sequence[int]) -> float:
        calls.append(len(sequence))
        return share_low(sequence)

    options: dict[str, Any] = {"ppo_buffer_size": 2, "ppo_epochs": 3, "gradient_accumulation_steps": 2}
    trainer = ppo_trainer(tmp_path, score=score, rows=20, num_train_epochs=1, max_steps=-1, **options)
    updates = recorded(trainer)
    trainer.train()
    # 20 prompts in rounds of 2 updates x 2 batches x 4 prompts: two rounds, each of 2 x 3 updates.
    assert trainer.state.global_step == len(updates) == 12
    assert len(calls) == 32
    for start in (0, 6):
        first, second = updates[start], updates[start + 1]
        assert updates[start + 2] is first and updates[start + 4] is first
        assert updates[start + 3] is second and updates[start + 5] is second
        assert first[0]["scores"].numel() == 4 and len(first) == 2
    assert updates[6] is not updates[0]
    assert trainer.train_dataset is not None and trainer.state.epoch == 1


def test_advantages_are_whitened_over_the_round_and_scores_stand_on_the_last_token(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, max_steps=1, ppo_buffer_size=2, gradient_accumulation_steps=2, ppo_kl_coef=0.0)
    trainer.train()
    batches = [batch for update in rollout_of(trainer)._round for batch in update]
    assert len(batches) == 4
    advantages = torch.cat([batch["advantages"] for batch in batches])
    assert advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert advantages.std().item() == pytest.approx(1, rel=1e-5)
    assert abs(batches[0]["advantages"].mean().item()) > 1e-3
    for batch in batches:
        lengths = (batch["labels"] != -100).sum(1).tolist()
        assert sum(lengths) == batch["old_logps"].numel() == batch["returns"].numel() == batch["old_values"].numel()
        answers = [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
        ]
        assert batch["scores"].tolist() == pytest.approx([share_low(answer) for answer in answers])
        # The last token is followed by nothing: its return is the score alone, whatever lambda.
        last = torch.tensor(lengths).cumsum(0) - 1
        assert torch.allclose(batch["returns"][last], batch["scores"], atol=1e-5)


def test_the_policy_starts_at_its_reference_and_at_ratio_one(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, max_steps=2, ppo_epochs=1)
    trainer.train()
    first, second = logged(trainer, "kl", "clip_fraction", "policy_loss")
    assert first == pytest.approx((1, 0, 0, 0), abs=1e-5) and second[0] == 2
    assert second[1] != 0


def test_whitened_rewards_and_normalised_scores_change_the_returns(tmp_path: Path) -> None:
    returns = []
    for options in ({}, {"ppo_whiten_rewards": True}, {"ppo_score_norm": True}):
        trainer = ppo_trainer(tmp_path / str(len(returns)), max_steps=1, ppo_kl_coef=0.0, **options)
        updates = recorded(trainer)
        trainer.train()
        (batch,) = updates[0]
        last = (batch["labels"] != -100).sum(1).cumsum(0) - 1
        returns.append(batch["returns"][last])
    plain, whitened, normalised = returns
    assert torch.allclose(normalised, (plain - plain.mean()) / plain.std(), atol=1e-5)
    tokens = batch["returns"].numel()
    everything = torch.cat([plain, torch.zeros(tokens - plain.numel())])
    expected = (plain - everything.mean()) / everything.std() + everything.mean()
    assert torch.allclose(whitened, expected, atol=1e-5)


def test_the_coefficient_of_the_next_round_follows_the_divergence(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, max_steps=4, ppo_epochs=2, ppo_target=0.5)
    trainer.train()
    coefs = [coef for _, coef in logged(trainer, "kl_coef")]
    lower = 0.2 * (1 - 0.2 * 4 / 10_000)
    assert coefs == pytest.approx([0.2, 0.2, lower, lower])
    fixed = ppo_trainer(tmp_path / "fixed", max_steps=3, ppo_epochs=1, ppo_adaptive_kl=False, ppo_kl_coef=0.5)
    fixed.train()
    assert [coef for _, coef in logged(fixed, "kl_coef")] == [0.5] * 3


@pytest.mark.parametrize(("size", "accumulation"), [(4, 2), (2, 4)])
def test_the_way_an_update_is_split_changes_nothing(tmp_path: Path, size: int, accumulation: int) -> None:
    options: dict[str, Any] = {"max_steps": 4, "ppo_buffer_size": 2, "ppo_score_norm": True, "ppo_whiten_rewards": True}
    logs = []
    for name, split in (("whole", (8, 1)), ("split", (size, accumulation))):
        batch, steps = split
        trainer = ppo_trainer(
            tmp_path / name, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, **options
        )
        trainer.train()
        logs.append(logged(trainer, *NAMES))
    assert close(logs[0], logs[1])


@pytest.mark.parametrize(("kind", "crash", "saved"), [("full", 6, 5), ("freeze", 3, 2), ("lora", 6, 5), ("lora", 4, 3)])
def test_resuming_is_exact(tmp_path: Path, kind: str, crash: int, saved: int) -> None:
    # Rounds of 2 updates x 2 passes over 2 rounds an epoch: checkpoints in the first and second pass of a round.
    options: dict[str, Any] = {"ppo_buffer_size": 2, "max_steps": 7, "save_strategy": "steps", "save_steps": saved}
    options |= {"kind": kind, "ppo_score_norm": True, "gradient_accumulation_steps": 2, "rows": 32, "ppo_target": 0.5}
    straight = ppo_trainer(tmp_path / "straight", **options)
    straight.train()
    halted = ppo_trainer(tmp_path / "halted", **options)
    halted.add_callback(CrashAt(crash))
    with pytest.raises(Crash):
        halted.train()
    resumed = ppo_trainer(tmp_path / "halted", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed._initial_global_step == saved
    assert logged(resumed, *NAMES, "kl_coef") == logged(straight, *NAMES, "kl_coef")
    assert same(weights(resumed.model), weights(straight.model))
    folders = (tmp_path / "straight", tmp_path / "halted")
    lines = [(folder / "rollouts.jsonl").read_text(encoding="utf-8") for folder in folders]
    assert lines[0] == lines[1]
    assert [json.loads(line)["step"] for line in lines[0].splitlines()] == [0] * 8 + [4] * 8


def test_a_round_cannot_be_continued_in_other_pieces(tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "ppo_epochs": 4}
    ppo_trainer(tmp_path, **options, max_steps=1, gradient_accumulation_steps=2).train()
    other = ppo_trainer(tmp_path, **options, max_steps=3, gradient_accumulation_steps=4, per_device_train_batch_size=2)
    with pytest.raises(CheckpointError, match=r"in 2 batches an update, and now an update has 4"):
        other.train(resume_from_checkpoint=True)
    rollout = rollout_of(ppo_trainer(tmp_path / "other"))
    with pytest.raises(CheckpointError, match=r"answers made by 2 processes, and now there are 1"):
        rollout.restore({"num_updates_done": 1, "kl_coef": 0.2, "norm": None, "round": [[{}]], "world_size": 2})


def test_evaluation_answers_the_evaluation_prompts(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path, max_steps=2, evals=5, eval_strategy="steps", eval_steps=1)
    trainer.train()
    rewards = logged(trainer, "eval_reward", "eval_kl")
    assert len(rewards) == 2
    again = trainer.evaluate()
    assert (again["eval_reward"], again["eval_kl"]) == pytest.approx(rewards[-1][1:])
    smaller = ppo_trainer(tmp_path / "smaller", evals=5, per_device_eval_batch_size=2).evaluate()
    larger = ppo_trainer(tmp_path / "larger", evals=5, per_device_eval_batch_size=5).evaluate()
    for name in ("eval_reward", "eval_kl", "eval_loss", "eval_response_length"):
        assert smaller[name] == pytest.approx(larger[name], abs=1e-5)
