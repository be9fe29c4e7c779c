"""Short real runs for the training tests: configuration, data and trainer in one call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from tests.conftest import make_tokenizer
from tests.training.models import examples, tiny_model
from torch import Tensor, nn
from transformers import TrainerCallback

from llamafactory.config.run import RunConfig, section_types
from llamafactory.data.pipeline import Datasets
from llamafactory.objectives import Objective
from llamafactory.objectives.sft import build
from llamafactory.training.build import build_trainer
from llamafactory.training.trainer import Trainer

UNEVEN = (9, 40, 5, 24, 12, 60, 7, 14, 20, 11, 33, 6, 48, 10, 16, 8, 28, 13, 19, 22)
DEFAULTS: dict[str, object] = {
    "per_device_train_batch_size": 2, "max_steps": 6, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2,
}  # fmt: skip


def run_config(output_dir: Path, **options: object) -> RunConfig:
    """A configuration from flat keys; each goes to the section that has it."""
    given = DEFAULTS | {"output_dir": str(output_dir)} | options
    sections = {}
    for name, section in section_types().items():
        chosen = {key: value for key, value in given.items() if key in section.model_fields}
        given = {key: value for key, value in given.items() if key not in chosen}
        sections[name] = (section, chosen)
    section, chosen = sections["training"]
    sections["training"] = (section, chosen | {"extra": given})
    return RunConfig(**{name: section(**chosen) for name, (section, chosen) in sections.items() if chosen})


def make_trainer(
    config: RunConfig,
    model: nn.Module | None = None,
    *,
    train: Dataset | IterableDataset | Sequence[Mapping[str, object]] | None = None,
    evals: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    objective: Objective | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """A trainer for a tiny Llama on unevenly long examples."""
    rows = examples(UNEVEN) if train is None else train
    trainer = build_trainer(
        config,
        model=tiny_model() if model is None else model,
        tokenizer=make_tokenizer(),
        datasets=Datasets(
            train=rows if isinstance(rows, Dataset | IterableDataset) else Dataset.from_list(list(rows)),
            evals={name: Dataset.from_list(list(found)) for name, found in (evals or {}).items()},
        ),
        objective=build(config) if objective is None else objective,
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    return trainer


def logged(trainer: Trainer, *names: str) -> list[tuple[float, ...]]:
    """(step, value of each name) for every log entry that has the first name."""
    names = names or ("loss", "grad_norm")
    return [
        (entry["step"], *(entry[name] for name in names)) for entry in trainer.state.log_history if names[0] in entry
    ]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Bitwise equality of two sets of tensors."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def write_log(trainer: Trainer, path: Path) -> None:
    """Store the logged losses and gradient norms of the first process."""
    if trainer.is_world_process_zero():
        path.write_text(json.dumps(logged(trainer)), encoding="utf-8")
