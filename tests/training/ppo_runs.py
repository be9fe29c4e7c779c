"""Short PPO runs on a tiny Llama with a reward that is a Python function of the token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from peft import PeftModel
from tests.conftest import make_tokenizer
from tests.training.models import tiny_model, with_lora
from tests.training.runs import run_config
from transformers import PreTrainedModel

from llamafactory.data.pipeline import Datasets
from llamafactory.models.value_head import attach_value_head
from llamafactory.objectives.ppo import build
from llamafactory.training.build import build_trainer
from llamafactory.training.rewards.api import ServerReward
from llamafactory.training.rollout_build import add_rollouts
from llamafactory.training.trainer import Trainer

VOCAB = 64
STOP = 2
SETTINGS: dict[str, object] = {
    "stage": "ppo", "per_device_train_batch_size": 4, "max_new_tokens": 5, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
    "ppo_epochs": 2, "reward_model": "in this test", "lr_scheduler_type": "constant",
}  # fmt: skip

Score = Callable[[Sequence[int]], float]


def prompt_rows(count: int) -> list[dict[str, object]]:
    """Prompts of two to five tokens without a reference answer."""
    rows = [[1, 3 + index % 8, *[4] * (index % 4)] for index in range(count)]
    return [{"input_ids": ids, "labels": [], "length": len(ids)} for ids in rows]


def share_low(sequence: Sequence[int]) -> float:
    """Share of tokens of the lower half of the vocabulary among the last three."""
    return sum(token < VOCAB // 2 for token in sequence[-3:]) / 3


def policy(kind: str = "full", **options: object) -> PreTrainedModel | PeftModel:
    """A random policy with a value head."""
    base = tiny_model(vocab_size=VOCAB, **options)
    if kind == "freeze":
        base.model.layers[0].requires_grad_(False)
    model = with_lora(base) if kind == "lora" else base
    torch.manual_seed(3)
    attach_value_head(model, trainable=True)
    return model


def _each(score: Score, sequences: Sequence[Sequence[int]]) -> list[float]:
    return [score(sequence) for sequence in sequences]


def ppo_trainer(
    folder: Path,
    *,
    score: Score | ServerReward = share_low,
    rows: int = 16,
    evals: int = 0,
    kind: str = "full",
    **options: object,
) -> Trainer:
    """A trainer whose rewards are `score` of each sequence, or of a reward server's client."""
    config = run_config(folder, **SETTINGS | {"finetuning_type": kind} | options)
    held = {"validation": Dataset.from_list(prompt_rows(evals))} if evals else {}
    datasets = Datasets(train=Dataset.from_list(prompt_rows(rows)), evals=held)
    tokenizer = make_tokenizer()
    trainer = build_trainer(config, model=policy(kind), tokenizer=tokenizer, datasets=datasets, objective=build(config))
    reward = score if isinstance(score, ServerReward) else partial(_each, score)
    add_rollouts(trainer, config, tokenizer=tokenizer, stop_ids=(STOP,), reward=reward)
    return trainer
