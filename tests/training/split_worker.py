"""One process of a group: trains on its share of every global batch and stores the log. Arguments: JSON options."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from tests.training.models import examples, pairs, tiny_model, with_lora
from tests.training.runs import UNEVEN, make_trainer, run_config, write_log

from llamafactory.launch.worker import leave
from llamafactory.models.value_head import attach_value_head, freeze_for_ranking
from llamafactory.objectives import Objective
from llamafactory.objectives.rm import Ranking
from llamafactory.training.predictions import predict_pairs


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
    rows: Any = examples(UNEVEN[:num_examples])
    evals: Any = examples(UNEVEN[:7])
    objective: Objective | None = None
    if options.get("stage") == "rm":
        rows, evals, objective = pairs(UNEVEN[:num_examples]), pairs(UNEVEN[:7]), Ranking()
        attach_value_head(model, trainable=True)
        freeze_for_ranking(model)
    if options.pop("streaming", False):
        rows = IterableDataset.from_generator(stream)
    config = run_config(folder, **options)
    trainer = make_trainer(config, model, train=rows, evals={"validation": evals}, objective=objective)
    trainer.train(resume_from_checkpoint=resume)
    metrics = trainer.evaluate()
    if objective is not None:
        predict_pairs(trainer, [trainer.eval_dataset])
    write_log(trainer, folder / "log.json")
    if trainer.is_world_process_zero():
        (folder / "eval.json").write_text(json.dumps(metrics), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
    leave(0)
