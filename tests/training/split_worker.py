"""One process of a group: trains on its share of every global batch and stores the log. Arguments: JSON options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from tests.training.models import examples, tiny_model, with_lora
from tests.training.runs import UNEVEN, make_trainer, run_config, write_log

from llamafactory.launch.worker import leave
from llamafactory.training.predictions import predict_pairs
from llamafactory.training.trainer import Trainer


def stream() -> Iterator[dict[str, list[int]]]:
    """The examples, one after the other."""
    yield from examples(UNEVEN)


def main(options: dict[str, object]) -> None:
    torch.set_num_threads(1)
    folder = Path(str(options.pop("folder")))
    lora, resume = bool(options.pop("lora", False)), bool(options.pop("resume", False))
    num_examples = int(str(options.pop("num_examples", len(UNEVEN))))
    torch.manual_seed(0)
    model = tiny_model()
    model = with_lora(model, lora_dropout=0.1) if lora else model
    if options.pop("preference", False):
        from tests.training.test_preference import preference_trainer

        train_and_write(preference_trainer(folder, **options), folder, resume=False)
        return
    if options.get("stage") == "rm":
        from tests.training.test_reward_runs import reward_trainer

        trainer = reward_trainer(folder, **options)
        train_and_write(trainer, folder, resume=False)
        predict_pairs(trainer, [trainer.eval_dataset])
        return
    rows: Any = examples(UNEVEN[:num_examples])
    if options.pop("streaming", False):
        rows = IterableDataset.from_generator(stream)
    trainer = make_trainer(run_config(folder, **options), model, train=rows, evals={"validation": examples(UNEVEN[:7])})
    train_and_write(trainer, folder, resume=resume)


def train_and_write(trainer: Trainer, folder: Path, *, resume: bool) -> None:
    """Train and evaluate; the first process stores what was logged and measured."""
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    write_log(trainer, folder / "log.json")
    if trainer.is_world_process_zero():
        (folder / "eval.json").write_text(json.dumps(metrics), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    leave(0)
