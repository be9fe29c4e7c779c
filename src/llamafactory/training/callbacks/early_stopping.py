"""Ends a run whose evaluations no longer improve.

Keeps no state of its own: it reads the log history, which a resumed run continues.
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llamafactory.logs import get_logger

logger = get_logger(__name__)


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without a better `metric_for_best_model` (the evaluation loss by default)."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        name = args.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        values = [entry[name] for entry in state.log_history if name in entry]
        since_best = evaluations_since_best(values, greater_is_better=bool(args.greater_is_better))
        if since_best >= self._patience:
            logger.info("%s has not improved for %d evaluations: training stops here", name, since_best)
            control.should_training_stop = True


def evaluations_since_best(values: list[float], *, greater_is_better: bool) -> int:
    """How many values follow the first best one; NaN is never best."""
    best, place = None, -1
    for index, value in enumerate(values):
        better = value == value and (best is None or (value > best if greater_is_better else value < best))
        if better:
            best, place = value, index
    return len(values) - 1 - place
