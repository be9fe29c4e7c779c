"""The run's options as transformers' training arguments, with their traps taken out. Knows no model and no data."""

from __future__ import annotations

import dataclasses

import torch
from transformers import TrainingArguments

from llamafactory import env
from llamafactory.config.rules_parts import claims_optim
from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError
from llamafactory.logs import notice
from llamafactory.parts import require

_FIXED: dict[str, object] = {
    "remove_unused_columns": False,  # would drop weights and position ids
    "logging_nan_inf_filter": False,  # would log a NaN loss as the mean of earlier ones
    "label_names": ["labels"],
    "disable_tqdm": True,  # the progress line is ours
    "train_sampling_strategy": "random",  # the order is ours
    "push_to_hub": False,  # the finished artefact is uploaded, once
}


def build_training_arguments(config: RunConfig) -> TrainingArguments:
    """Arguments for the trainer; without an accelerator the CPU is used. Raises ConfigError."""
    known = {item.name for item in dataclasses.fields(TrainingArguments) if item.init}
    options = {name: value for name, value in config.training.to_hf_kwargs().items() if name in known}
    options |= _FIXED
    options.setdefault("report_to", "none")
    # Every process reads a stream itself: batches of different width could not be joined and handed out.
    options.setdefault("accelerator_config", {"dispatch_batches": False})
    if claims_optim(config):
        # The optimizer is ours: transformers would ask for a package, and treat the name in its own way.
        options |= {"optim": "adamw_torch", "optim_args": None, "optim_target_modules": None}
    if config.finetuning.pure_bf16:
        options |= {"bf16": False, "fp16": False}
    if config.finetuning.early_stopping_steps or config.training.save_strategy == "best":
        options.setdefault("metric_for_best_model", "loss")
    if config.training.use_cpu or not torch.accelerator.is_available():
        options |= _on_cpu(config)
    if config.training.push_to_hub and "hub_strategy" in config.training.extra:
        notice("hub_strategy has no effect: the finished run is uploaded once")
    _check_sharding(config)
    if env.in_group():
        options.setdefault("ddp_find_unused_parameters", False)
    return _construct(options)


def _check_sharding(config: RunConfig) -> None:
    """Raise MissingPackageError or ConfigError where a library that shards the model could not start."""
    if config.training.deepspeed:
        require("deepspeed", f"{config.place('deepspeed')}: deepspeed")
    if config.training.fsdp and not env.in_group():
        raise ConfigError(
            f"{config.place('fsdp')}: fsdp: one process alone has nothing to share the model with; start the run with "
            "FORCE_TORCHRUN=1, or remove fsdp"
        )


def _on_cpu(config: RunConfig) -> dict[str, object]:
    """Options of a run without accelerator. Raises ConfigError for number formats a CPU does not train in."""
    if config.training.fp16:
        raise ConfigError(
            f"{config.place('fp16')}: fp16: true needs a GPU, and this run uses the CPU, where it would have no "
            "effect; use bf16: true, or remove fp16"
        )
    if config.training.extra.get("tf32"):
        raise ConfigError(f"{config.place('tf32')}: tf32: true needs a GPU, and this run uses the CPU; remove tf32")
    options: dict[str, object] = {"use_cpu": True, "dataloader_pin_memory": False}
    if env.in_group() and config.training.ddp_backend is None:
        options["ddp_backend"] = "gloo"
    return options


def _construct(options: dict[str, object]) -> TrainingArguments:
    try:
        args = TrainingArguments(**options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the training options cannot be combined: {' '.join(str(error).split())}") from error
    if args.n_gpu > 1:
        notice(f"One process trains on one GPU: 1 of {args.n_gpu} is used; set FORCE_TORCHRUN=1 to use all of them")
        args._n_gpu = 1
    return args
