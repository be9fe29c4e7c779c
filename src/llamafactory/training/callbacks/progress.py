"""Progress for a person: one live line on a terminal, a calm line now and then elsewhere. Knows no file."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamafactory.logs import get_logger

logger = get_logger(__name__)

QUIET_SECONDS = 15.0


class ProgressLine(TrainerCallback):
    """Shows step, loss and remaining time on the first process.

    live: force the bar on or off; left out, it is shown when `console` (standard error) is a terminal. Without a bar
    the first, the last, every evaluation and at most one line in `quiet_seconds` are logged.
    """

    def __init__(
        self, *, live: bool | None = None, console: Console | None = None, quiet_seconds: float = QUIET_SECONDS
    ) -> None:
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal if live is None else live
        self._quiet_seconds, self._last_line = quiet_seconds, float("-inf")
        self._bar: Progress | None = None
        self._training, self._evaluation = -1, -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._live and state.is_world_process_zero:
            self._bar = _new_bar(self._console)
            self._bar.start()
            self._training = self._bar.add_task(
                "training", total=state.max_steps, completed=state.global_step, facts=""
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._training, completed=state.global_step)  # type: ignore[arg-type]

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not self._live or not state.is_world_process_zero:
            return
        if self._bar is None:
            self._bar = _new_bar(self._console)
            self._bar.start()
        if self._evaluation < 0:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self._evaluation = self._bar.add_task("evaluation", total=total, facts="")
        self._bar.advance(self._evaluation)  # type: ignore[arg-type]

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None and self._evaluation >= 0:
            self._bar.remove_task(self._evaluation)  # type: ignore[arg-type]
            self._evaluation = -1
            if self._training < 0:
                self._close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        facts = _facts(logs or {})
        if not state.is_world_process_zero or not facts:
            return
        if self._bar is not None and self._training >= 0:
            self._bar.update(self._training, facts=facts)  # type: ignore[arg-type]
            return
        now = time.monotonic()
        last = state.global_step >= state.max_steps or "eval" in facts
        if last or now - self._last_line >= self._quiet_seconds:
            self._last_line = now
            logger.info("step %d/%d %s", state.global_step, state.max_steps, facts)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._training, self._evaluation = None, -1, -1


def _new_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _facts(logs: dict[str, float]) -> str:
    sets = [name for name in logs if name.startswith("eval_") and name.endswith("_loss")]
    titles = {name: name.removesuffix("_loss").replace("eval_", "eval ", 1) + " loss" for name in sets}
    shown = {"loss": "loss", **titles, "learning_rate": "lr", "reward": "reward"}
    return " ".join(f"{title} {logs[name]:.4g}" for name, title in shown.items() if name in logs)
