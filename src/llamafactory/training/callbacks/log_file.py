"""`trainer_log.jsonl`: one JSON object per reported line, for people, the web UI and plots. Knows files and numbers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamafactory import env

LOG_FILE = "trainer_log.jsonl"
PREDICTION_INTERVAL = 5
_NOT_METRICS = frozenset({
    "loss", "predict_loss", "reward", "accuracy", "eval_accuracy", "learning_rate", "epoch", "train_loss", "total_flos",
    "num_input_tokens_seen",
})  # fmt: skip
_RATES = ("_runtime", "_per_second")


class LogFile(TrainerCallback):
    """Appends to the log, line by line, on the first process.

    A run that goes on from a checkpoint first drops the lines behind it, so every step stands there once.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._started, self._first_step, self._training = time.monotonic(), 0, False
        self._predictions = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started, self._first_step, self._training = time.monotonic(), state.global_step, True
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _keep_until(self._path, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        line: dict[str, object] = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            "loss": logs.get("loss"),
            "predict_loss": logs.get("predict_loss"),
            "reward": logs.get("reward"),
            "accuracy": logs.get("rewards/accuracies", logs.get("accuracy", logs.get("eval_accuracy"))),
            "lr": logs.get("learning_rate"),
            "epoch": logs.get("epoch"),
            **self._progress(state.global_step, state.max_steps),
            **{name: value for name, value in logs.items() if _is_metric(name)},
        }
        if args.include_num_input_tokens_seen != "no":
            seconds = max(time.monotonic() - self._started, 1e-9)
            line["throughput"] = round(state.num_input_tokens_seen / seconds, 2)
            line["total_tokens"] = state.num_input_tokens_seen
        self._append(line | _memory())

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if self._training or not state.is_world_process_zero or not hasattr(eval_dataloader, "__len__"):
            return
        if self._predictions == 0:
            self._started, self._first_step = time.monotonic(), 0
        self._predictions += 1
        if self._predictions % PREDICTION_INTERVAL == 0:
            total = len(eval_dataloader)
            steps = {"current_steps": self._predictions, "total_steps": total}
            self._append(steps | self._progress(self._predictions, total))

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._predictions = 0

    def _progress(self, step: int, total: int) -> dict[str, object]:
        return progress_of(step, total, first=self._first_step, seconds=time.monotonic() - self._started)

    def _append(self, line: dict[str, object]) -> None:
        append_line(self._path, line)


def progress_of(step: int, total: int, *, first: int, seconds: float) -> dict[str, object]:
    """The entries of a log line that tell how far a job is. first: where it began, seconds ago."""
    done = step - first
    remaining = seconds / done * (total - step) if done > 0 else 0.0
    return {
        "percentage": round(step / total * 100, 2) if total else 100.0,
        "elapsed_time": str(timedelta(seconds=int(seconds))),
        "remaining_time": str(timedelta(seconds=int(remaining))),
    }


def append_line(path: Path, line: Mapping[str, object]) -> None:
    """Append one line to a log, without the entries that are None."""
    text = json.dumps({name: value for name, value in line.items() if value is not None})
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def _is_metric(name: str) -> bool:
    """True for what a stage or an evaluation measures; the other entries are under names of their own or not here."""
    return name not in _NOT_METRICS and not name.endswith(_RATES)


def _keep_until(path: Path, step: int) -> None:
    """Drop lines of later steps; a half-written last line is dropped too."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if 0 <= _step(line) <= step and step]
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    Path(staged).replace(path)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["current_steps"])
    except (ValueError, KeyError, TypeError):
        return -1


def _memory() -> dict[str, object]:
    """Memory of the accelerator in GiB, when RECORD_VRAM is set and there is one."""
    if not env.is_enabled("RECORD_VRAM") or not torch.accelerator.is_available():
        return {}
    return {
        "vram_allocated": round(torch.accelerator.max_memory_allocated() / 2**30, 2),
        "vram_reserved": round(torch.accelerator.max_memory_reserved() / 2**30, 2),
    }
