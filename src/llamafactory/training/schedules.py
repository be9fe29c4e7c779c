"""Arguments of learning-rate schedules that the user left out and the schedule cannot do without."""

from __future__ import annotations

from transformers import TrainingArguments

STABLE_SHARE = 1 / 3


def scheduler_arguments(args: TrainingArguments, num_training_steps: int) -> dict[str, object]:
    """The given arguments, completed. `warmup_stable_decay`: after the warm-up a third is stable, the rest decays."""
    given: dict[str, object] = dict(args.lr_scheduler_kwargs or {})
    if args.lr_scheduler_type != "warmup_stable_decay" or given:
        return given
    remaining = num_training_steps - args.get_warmup_steps(num_training_steps)
    return {"num_decay_steps": remaining - int(remaining * STABLE_SHARE)}
