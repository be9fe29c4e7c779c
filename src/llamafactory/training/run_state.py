"""What a checkpoint of a running trainer holds, and how a trainer takes it up again.

Works on the trainer's public attributes; knows no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from llamafactory.errors import CheckpointError
from llamafactory.logs import get_logger
from llamafactory.training import checkpointing
from llamafactory.training.checkpointing import Facts
from llamafactory.training.preparation import Remembering
from llamafactory.training.state_files import (
    load_optimizer_state,
    load_plain,
    load_state,
    random_state,
    restore_random_state,
    save_plain,
    save_state,
)
from llamafactory.training.weight_files import load_weights, verify_weights

if TYPE_CHECKING:
    from llamafactory.training.trainer import Trainer

logger = get_logger(__name__)

ADAM_BYTES_PER_PARAMETER = 8  # two fp32 moments; smaller optimizers only make the estimate careful


def resolve(output_dir: Path, asked: str | Path | bool | None) -> Path | None:
    """The checkpoint folder meant by `resume_from_checkpoint`. Raises CheckpointError when True finds none."""
    if asked is None or asked is False:
        return None
    if asked is not True:
        return Path(asked)
    found, skipped = checkpointing.find_resumable(output_dir)
    for folder, reason in skipped:
        logger.warning("Skipped %s: %s", folder.name, reason)
    if found is None:
        why = "; ".join(f"{folder.name}: {reason}" for folder, reason in skipped) or "it holds none"
        raise CheckpointError(
            f"resume_from_checkpoint: '{output_dir}' has no complete checkpoint ({why}); "
            "remove resume_from_checkpoint to start from the beginning"
        )
    return found


def refuse_finished(step: int, max_steps: int) -> None:
    """Raise CheckpointError when the run has already reached its last step."""
    if step and step >= max_steps:
        raise CheckpointError(
            f"output_dir: the run is finished: its checkpoint is at step {step} and the run ends at step {max_steps}, "
            "so nothing is left to train; raise num_train_epochs or max_steps to go on, or choose another output_dir"
        )


def report_changes(saved: Facts, now: Facts) -> None:
    """Warn when the order or grouping of examples is not the one the checkpoint was made with."""
    for name in ("global_batch_size", "num_examples", "seed"):
        before, after = getattr(saved, name), getattr(now, name)
        if before != after:
            logger.warning(
                "%s was %s when the checkpoint was made and is %s now: the run goes on, but not with the examples it "
                "would have seen", name, before, after,
            )  # fmt: skip


def check_room(trainer: Trainer, max_steps: int) -> None:
    """Compare the size of the coming checkpoints with the room on disk, on the process that writes them."""
    if not trainer.args.should_save:
        return
    limit = trainer.args.save_total_limit
    interval = max(1, int(trainer.state.save_steps or 1))
    num_kept = limit if limit else max_steps // interval if trainer.args.save_strategy == "steps" else 1
    with_optimizer = not trainer.args.save_only_model
    num_bytes = estimate_bytes(trainer.model, with_optimizer=with_optimizer)
    checkpointing.check_space(Path(trainer.args.output_dir), num_bytes, num_kept=num_kept)


def estimate_bytes(model: nn.Module, *, with_optimizer: bool) -> int:
    """Bytes of one checkpoint: all weights, or the trained ones of an adapter, and Adam's moments."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    saved = trained if isinstance(model, PeftModel) else list(model.parameters())
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in saved)
    if with_optimizer:
        num_bytes += ADAM_BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in trained)
    return num_bytes


def save_checkpoint(trainer: Trainer) -> Path:
    """Write a checkpoint of the present step, delete those beyond the limit, and return its folder.

    Called on every process. Raises CheckpointError on all of them when it fails on one; earlier checkpoints stay.
    """
    output_dir, step = Path(trainer.args.output_dir), trainer.state.global_step
    target, stage = output_dir / f"checkpoint-{step}", checkpointing.staging_folder(output_dir, step)
    writes = trainer.args.should_save
    _together(trainer, stage, lambda: checkpointing.begin(stage) if writes else None)
    _together(trainer, stage, lambda: _fill(trainer, stage, target))
    _together(trainer, stage, lambda: _publish(trainer, stage, target) if writes else None)
    return target


def _fill(trainer: Trainer, stage: Path, target: Path) -> None:
    best_step = trainer.state.best_global_step
    best = target.with_name(f"checkpoint-{best_step}")
    if best_step and (best == target or best.is_dir()):
        trainer.state.best_model_checkpoint = str(best)
    trainer.save_model(str(stage), _internal_call=True)
    if not trainer.args.save_only_model:
        trainer._save_optimizer_and_scheduler(str(stage))
        trainer._save_scaler(str(stage))
        trainer._save_rng_state(str(stage))
    if trainer.args.should_save:
        if trainer.checkpoint_facts().native:
            verify_weights(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False), stage)
        trainer.store_callback_states()
        trainer.state.save_to_json(str(stage / checkpointing.TRAINER_STATE))


def _publish(trainer: Trainer, stage: Path, target: Path) -> None:
    checkpointing.commit(stage, target, trainer.checkpoint_facts())
    best = trainer.state.best_model_checkpoint
    checkpointing.rotate(target.parent, trainer.args.save_total_limit, keep=[Path(best)] if best else [])


def _together(trainer: Trainer, stage: Path, action: Callable[[], None]) -> None:
    """Run a step of saving on every process; when one fails, all stop, and the staging folder is removed."""
    error: Exception | None = None
    try:
        action()
    except (OSError, SafetensorError, CheckpointError) as found:
        error = found
    failed = trainer.accelerator.reduce(
        torch.tensor(float(error is not None), device=trainer.args.device), reduction="sum"
    )
    if not failed.item():
        return
    if trainer.args.should_save:
        checkpointing.discard(stage)
    if isinstance(error, CheckpointError):
        raise error
    raise CheckpointError(
        f"output_dir: checkpoint-{trainer.state.global_step} could not be written to '{trainer.args.output_dir}' "
        f"({error or 'another process failed'}); earlier checkpoints are intact; free some space and start the same "
        "command again to go on from the newest one"
    ) from error


def save_optimizer(trainer: Trainer, folder: Path) -> None:
    """Write the state of optimizer and schedule, on the process that saves."""
    if trainer.args.should_save:
        save_state(folder / checkpointing.OPTIMIZER, core_optimizer(trainer).state_dict())
        save_plain(folder / checkpointing.SCHEDULER, trainer.lr_scheduler.state_dict())


def load_optimizer(trainer: Trainer, folder: Path) -> None:
    """Take up the state of optimizer and schedule."""
    load_optimizer_state(
        core_optimizer(trainer),
        cast("Mapping[str, object]", load_state(_existing(folder, checkpointing.OPTIMIZER))),
    )
    trainer.lr_scheduler.load_state_dict(load_plain(_existing(folder, checkpointing.SCHEDULER)))


def core_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """The optimizer itself, without accelerate's wrapper."""
    return cast("torch.optim.Optimizer", getattr(trainer.optimizer, "optimizer", trainer.optimizer))


def save_scaler(trainer: Trainer, folder: Path) -> None:
    """Write the state of the fp16 loss scaler, where there is one."""
    if trainer.accelerator.scaler is not None and trainer.args.should_save:
        save_plain(folder / checkpointing.SCALER, trainer.accelerator.scaler.state_dict())


def load_scaler(trainer: Trainer, folder: Path) -> None:
    """Take up the state of the fp16 loss scaler, where there is one."""
    if trainer.accelerator.scaler is not None and (folder / checkpointing.SCALER).is_file():
        trainer.accelerator.scaler.load_state_dict(load_plain(folder / checkpointing.SCALER))


def save_rank_state(trainer: Trainer, folder: Path) -> None:
    """Write random number state, not yet logged sums and the preparation's state of this process."""
    state = {
        "random": random_state(),
        "loss": trainer._tr_loss,
        "total_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "metrics": trainer.train_sums.state(),
    }
    if isinstance(trainer.preparation, Remembering):
        state["preparation"] = trainer.preparation.state()
    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder / checkpointing.rank_file(trainer.args.process_index), state)


def load_rank_state(trainer: Trainer, folder: Path) -> None:
    """Take up random number state and sums. A process the checkpoint did not have starts with numbers of its own."""
    path = folder / checkpointing.rank_file(trainer.args.process_index)
    if not path.is_file() and trainer.args.process_index >= checkpointing.read_facts(folder).world_size:
        logger.warning("The checkpoint had fewer processes: this one starts with random numbers of its own")
        return
    state = cast("dict[str, object]", load_state(_existing(folder, path.name)))
    restore_random_state(cast("Mapping[str, object]", state["random"]))
    device = trainer.args.device
    trainer._tr_loss.copy_(cast("torch.Tensor", state["loss"]).to(device))
    trainer._total_loss_scalar = cast("float", state["total_loss"])
    trainer._globalstep_last_logged = cast("int", state["last_logged"])
    metrics = cast("dict[str, torch.Tensor]", state["metrics"])
    trainer.train_sums.restore({name: pair.to(device) for name, pair in metrics.items()})


def load_preparation(trainer: Trainer, folder: Path) -> None:
    """Take up the state of a preparation that has one. Called before the first batch is drawn.

    A process the checkpoint did not have takes up the state of the first one.
    """
    if isinstance(trainer.preparation, Remembering):
        known = trainer.args.process_index < checkpointing.read_facts(folder).world_size
        name = checkpointing.rank_file(trainer.args.process_index if known else 0)
        state = cast("Mapping[str, object]", load_state(_existing(folder, name)))
        if "preparation" not in state:
            raise CheckpointError(
                f"resume_from_checkpoint: '{folder}' is of a run whose loss kept no running means, and the loss of "
                "this run does; resume with the options of that run, or start anew in another output_dir"
            )
        trainer.preparation.restore(cast("Mapping[str, object]", state["preparation"]))


def load_weights_into(trainer: Trainer, folder: Path) -> None:
    """Take up the weights of a checkpoint."""
    load_weights(trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False), folder)


def _existing(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise CheckpointError(
            f"resume_from_checkpoint: {name} is missing in '{folder}', so the run cannot go on exactly; "
            "give another checkpoint-N folder"
        )
    return folder / name
