"""PPO learns: the share of one token in the answers, as a server on loopback scores it, rises from near 0 to 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.conftest import make_tokenizer
from tests.training.ppo_runs import ppo_trainer, prompt_rows
from tests.training.reward_server import scores, serving
from tests.training.runs import logged

from llamafactory.training.rewards.api import ServerReward

TOKENIZER = make_tokenizer()
WANTED = TOKENIZER.convert_tokens_to_ids("!")


def share_wanted(text: str) -> float:
    """Share of the wanted token among those behind the prompt, told from the text alone."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    length = next(
        len(row["input_ids"]) for row in reversed(prompt_rows(8)) if ids[: len(row["input_ids"])] == row["input_ids"]
    )
    return sum(token == WANTED for token in ids[length:]) / len(ids[length:])


OPTIONS: dict[str, object] = {
    "per_device_train_batch_size": 32, "ppo_epochs": 4, "learning_rate": 6e-3, "max_new_tokens": 8, "max_steps": 120,
    "ppo_kl_coef": 0.02, "ppo_score_norm": True, "logging_steps": 4,
}  # fmt: skip


@pytest.mark.slow
def test_the_reward_of_a_server_rises(tmp_path: Path) -> None:
    with serving(scores(share_wanted)) as url:
        trainer = ppo_trainer(tmp_path, score=ServerReward(url, TOKENIZER, 30.0), rows=32, **OPTIONS)
        trainer.train()
    rewards = [reward for _, reward in logged(trainer, "reward")]
    assert rewards[0] < 0.1 and rewards[-1] >= 0.9
    last = json.loads((tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["response"].count("!") >= 6
