"""The numbers a run leaves behind: result files and the trainer's state. Knows file names, no stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory.training.checkpointing import TRAINER_STATE

if TYPE_CHECKING:
    from llamafactory.training.trainer import Trainer

ALL_RESULTS = "all_results.json"


def write_results(folder: Path, split: str, metrics: Mapping[str, float]) -> None:
    """Write `<split>_results.json` and merge the values into `all_results.json`."""
    _write(folder / f"{split}_results.json", metrics)
    everything = folder / ALL_RESULTS
    before = json.loads(everything.read_text(encoding="utf-8")) if everything.is_file() else {}
    _write(everything, before | dict(metrics))


def finish_training(trainer: Trainer, metrics: Mapping[str, float], *, real_tokens: bool = False) -> dict[str, float]:
    """Write train_results.json, all_results.json and trainer_state.json on the first process; returns the metrics.

    metrics: of `trainer.train(...)`. real_tokens: add `effective_tokens_per_sec`.
    """
    found = dict(metrics)
    speed = effective_tokens_per_second(trainer, found) if real_tokens else None
    if speed is not None:
        found["effective_tokens_per_sec"] = speed
    if trainer.is_world_process_zero():
        folder = Path(trainer.args.output_dir)
        write_results(folder, "train", found)
        trainer.state.save_to_json(str(folder / TRAINER_STATE))
    return found


def effective_tokens_per_second(trainer: Trainer, metrics: Mapping[str, float]) -> float | None:
    """Real (not padding) tokens per second and device of the last `train` call; None when lengths are not known."""
    dataset, seconds = trainer.train_dataset, metrics.get("train_runtime")
    if "length" not in getattr(dataset, "column_names", ()) or not seconds or not trainer.state.global_step:
        return None
    share_of_call = 1 - trainer._initial_global_step / trainer.state.global_step
    num_tokens = sum(dataset["length"][:]) * (trainer.state.epoch or 0.0) * share_of_call
    return round(num_tokens / seconds / trainer.args.world_size, 2)


def _write(path: Path, content: Mapping[str, float]) -> None:
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_text(json.dumps(dict(content), indent=4, sort_keys=True), encoding="utf-8")
    Path(staged).replace(path)
