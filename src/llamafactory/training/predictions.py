"""Predictions of a reward model: the scores of every pair of the evaluation data, in the order of the data.

Works on the trainer's public parts; knows no model class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate.utils import gather_object, send_to_device
from torch import nn

from llamafactory.objectives.rm import chosen_and_rejected
from llamafactory.training.results import write_results
from llamafactory.training.samplers import longest_first

if TYPE_CHECKING:
    from datasets import Dataset

    from llamafactory.training.trainer import Trainer

PREDICTIONS_FILE = "generated_predictions.jsonl"
Pair = tuple[float, float]


def predict_pairs(trainer: Trainer, datasets: Sequence[Dataset]) -> dict[str, float]:
    """Write `generated_predictions.jsonl`, {"chosen": score, "rejected": score} for each pair of all sets in turn.

    Also writes predict_results.json. Called on every process; returns the metrics.
    """
    pairs = [pair for dataset in datasets for pair in score_pairs(trainer, dataset)]
    margins = torch.tensor([chosen - rejected for chosen, rejected in pairs], dtype=torch.float64)
    metrics = {
        "predict_loss": -nn.functional.logsigmoid(margins).mean().item(),
        "predict_accuracy": (margins > 0).double().mean().item(),
        "predict_samples": float(len(pairs)),
    }
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        lines = [json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in pairs]
        (folder / PREDICTIONS_FILE).write_text("".join(lines), encoding="utf-8")
        write_results(folder, "predict", metrics)
    return metrics


@torch.no_grad()
def score_pairs(trainer: Trainer, dataset: Dataset) -> list[Pair]:
    """(chosen, rejected) of every pair in the order of the data, on every process."""
    model = _prepared(trainer)
    found: dict[int, Pair] = {}
    for places in _shares(trainer, dataset["length"][:]):
        batch = trainer.data_collator([dataset[place] for place in places])
        scores = trainer.scorer(model, send_to_device(batch, trainer.args.device))
        chosen, rejected = (side.tolist() for side in chosen_and_rejected(scores))
        found |= dict(zip(places, zip(chosen, rejected, strict=True), strict=True))
    together: dict[int, Pair] = dict(gather_object(list(found.items())))
    return [together[place] for place in range(len(dataset))]


def _prepared(trainer: Trainer) -> nn.Module:
    """The model in evaluation mode, wrapped as training or evaluation left it, or for the first time."""
    model: nn.Module = trainer.model_wrapped
    if not trainer.accelerator._models:
        model = trainer.accelerator.prepare_model(trainer.model, evaluation_mode=True)
    return model.eval()


def _shares(trainer: Trainer, lengths: Sequence[int]) -> Iterator[list[int]]:
    """The batches of this process: equally many on all of them, the longest pairs first."""
    order, args = list(longest_first(lengths)), trainer.args
    step = args.eval_batch_size * args.world_size
    if args.world_size > 1:
        order += order[-1:] * (-len(order) % step)  # scored twice, written once
    for start in range(args.process_index * args.eval_batch_size, len(order), step):
        yield order[start : start + args.eval_batch_size]
