"""One process of a group: a PPO run whose log is stored. Arguments: JSON options."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tests.training.ppo_runs import ppo_trainer
from tests.training.runs import logged

from llamafactory.launch.worker import leave

NAMES = ("loss", "grad_norm", "reward", "kl", "policy_loss", "value_loss")


def main(options: dict[str, object]) -> None:
    torch.set_num_threads(1)
    folder = Path(str(options.pop("folder")))
    resume = bool(options.pop("resume", False))
    trainer = ppo_trainer(folder, **options)
    trainer.train(resume_from_checkpoint=resume)
    if trainer.is_world_process_zero():
        (folder / "log.json").write_text(json.dumps(logged(trainer, *NAMES)), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    leave(0)
