"""Starts of LoRA that look at the run's own data: some batches pass through the model before the first update.

Knows no method: `models.adapters.starts` says what is looked at and what is made of it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from llamafactory.config.run import RunConfig
from llamafactory.errors import DataError
from llamafactory.logs import get_logger
from llamafactory.models.measure import input_summaries, source_of, weight_gradients
from llamafactory.models.start import start_from, take_up_start
from llamafactory.objectives import Batch
from llamafactory.training.trainer import Trainer

logger = get_logger(__name__)


def start_from_data(trainer: Trainer, config: RunConfig, checkpoint: Path | None) -> None:
    """Give a new adapter that waits for data its first values, in place; from a checkpoint, those stored there.

    The batches are the first of the training order, the same in every process. Raises DataError when none is learned.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    source = source_of(model, config)
    if source is None:
        return
    if checkpoint is not None:
        take_up_start(model, checkpoint)
        return
    batches = trainer.first_batches(config.lora.lora_init_batches)
    measured = _inputs(trainer, model, config, batches) if source == "inputs" else _gradients(trainer, model, batches)
    if not measured:
        raise DataError(
            f"{config.place('lora_init')}: lora_init: {config.lora.init} looks at the first {len(batches)} batches, "
            "and no token in them is supervised; check the data set, or set lora_init: default"
        )
    start_from(model, config, {name: partial(value.to, trainer.args.device) for name, value in measured.items()})
    logger.info("lora_init: %s: %d layers start from %d batches", config.lora.init, len(measured), len(batches))


def _inputs(trainer: Trainer, model: PeftModel, config: RunConfig, batches: list[Batch]) -> dict[str, Tensor]:
    supervised: list[Tensor | None] = [None]
    was_training = model.training
    model.eval()
    with input_summaries(model, config, lambda: supervised[0]) as found, torch.no_grad():
        for batch in batches:
            labels = batch.get("labels")
            supervised[0] = None if labels is None else labels != -100
            _loss(trainer, batch)
    model.train(was_training)
    return found


def _gradients(trainer: Trainer, model: PeftModel, batches: list[Batch]) -> dict[str, Tensor]:
    """Gradient of the mean loss of the batches: their summed loss over their units, as in an update."""
    count = sum(float(trainer.objective.count(batch)) for batch in batches)
    with weight_gradients(model) as found:
        for batch in batches:
            if float(trainer.objective.count(batch)):
                (_loss(trainer, batch) / count).backward()
    return found


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    with trainer.compute_loss_context_manager():
        return trainer.objective(trainer.scorer(trainer.model, batch), batch).loss_sum
