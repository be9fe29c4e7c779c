"""What a reward model of its own takes over from the run, and what it does not."""

from __future__ import annotations

from pathlib import Path

from llamafactory.config import load_config
from llamafactory.models.load import load_model
from llamafactory.models.tokenizer import load_tokenizer
from llamafactory.training.rewards.full import reward_config


def test_positions_of_a_reward_model_are_its_own(model_dir: Path, tmp_path: Path) -> None:
    options = {
        "model_name_or_path": str(model_dir), "template": "chatml", "dataset": "d", "do_train": True, "use_cpu": True,
        "output_dir": str(tmp_path), "stage": "ppo", "reward_model": str(model_dir), "reward_model_type": "full",
        "rope_scaling": "linear", "cutoff_len": 64,
    }  # fmt: skip
    config = reward_config(load_config(options))
    model = load_model(config, load_tokenizer(config), trainable=False).model
    assert model.config.rope_parameters["rope_type"] == "default"
