"""What a run's optimizer, schedule and number format would refuse, found out before any weight is loaded.

Tries the library's own constructors on one dummy weight, so a new name or argument needs no list here. Knows no model
and no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from llamafactory.config.rules_parts import replaces_optim
from llamafactory.config.run import RunConfig
from llamafactory.errors import ConfigError, first_line
from llamafactory.logs import get_logger
from llamafactory.models.quantization import QUANTIZERS
from llamafactory.parts import require
from llamafactory.training.arguments import build_training_arguments
from llamafactory.training.schedules import scheduler_arguments

logger = get_logger(__name__)

# Import name and pip's name of the packages behind transformers' optimizers, by the beginning of their names.
_PACKAGES: Mapping[str, tuple[str, str]] = {
    "adamw_bnb": ("bitsandbytes", "bitsandbytes"),
    "adamw_8bit": ("bitsandbytes", "bitsandbytes"),
    "ademamix": ("bitsandbytes", "bitsandbytes"),
    "lion": ("bitsandbytes", "bitsandbytes"),
    "paged": ("bitsandbytes", "bitsandbytes"),
    "rmsprop_bnb": ("bitsandbytes", "bitsandbytes"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu": ("torch_npu", "torch_npu"),
    "adamw_anyprecision": ("torchdistx", "git+https://github.com/pytorch/torchdistx"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
}
_SOME_STEPS = 100
_EXAMPLES = {
    "cosine_with_min_lr": "{min_lr_rate: 0.1}",
    "cosine_warmup_with_min_lr": "{min_lr_rate: 0.1}",
}


def check_training(config: RunConfig) -> TrainingArguments:
    """The arguments of the run's trainer, once everything that needs no model has been tried.

    Raises ConfigError, MissingPackageError.
    """
    if config.finetuning.plot_loss:
        require("matplotlib", "plot_loss: true", extra="plot")
    _check_quantizer(config)
    args = build_training_arguments(config)
    _check_trackers(config, args)
    if config.training.do_train:
        _check_optimizer(config, args)
        _check_schedule(config, args)
    return args


def _check_quantizer(config: RunConfig) -> None:
    """The packages of a quantized base, reference or reward model are installed. Raises MissingPackageError."""
    bits = (
        config.quantization.quantization_bit,
        config.preference.ref_model_quantization_bit,
        config.ppo.reward_model_quantization_bit,
    )
    if any(value is not None for value in bits):
        part = QUANTIZERS.load(config.quantization.quantization_method)
        if hasattr(part, "require_packages"):
            part.require_packages()


def _check_optimizer(config: RunConfig, args: TrainingArguments) -> None:
    """Build the optimizer named in `optim` over a dummy weight. Raises ConfigError, MissingPackageError."""
    if replaces_optim(config):
        return  # the optimizer is ours: it needs no package, and its arguments are checked as options
    name = str(args.optim.value)
    _require_package(name, config.place("optim"))
    pairs = [pair for pair in (args.optim_args or "").split(",") if pair.strip()]
    if not all("=" in pair for pair in pairs):
        raise ConfigError(
            f"{config.place('optim_args')}: optim_args: got {args.optim_args!r}, expected names and values separated "
            "by commas; write for example optim_args: momentum=0.9,nesterov=true"
        )
    given = f" with optim_args: {args.optim_args}" if args.optim_args else ""
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        kind([nn.Parameter(torch.zeros(2, 2))], **options)
    except (ImportError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{config.place('optim')}: optim: {name}{given}: this optimizer cannot be built ({first_line(error)}); "
            "change or remove it"
        ) from error
    if args.optim_args:
        _report_unread(config, args, options)


def _require_package(name: str, place: str) -> None:
    for start, (package, install) in _PACKAGES.items():
        if name.startswith(start):
            require(package, f"{place}: optim: {name}", install=install)


def _report_unread(config: RunConfig, args: TrainingArguments, options: Mapping[str, Any]) -> None:
    """Tell when the optimizer has the same options without `optim_args`: then it reads none of them."""
    without = copy(args)
    without.optim_args = None
    if Trainer.get_optimizer_cls_and_kwargs(without)[1] == options:
        logger.warning(
            "%s: optim_args: %s has no effect: optim: %s reads none of these names, or they are its defaults",
            config.place("optim_args"),
            args.optim_args,
            args.optim.value,
        )


def _check_schedule(config: RunConfig, args: TrainingArguments) -> None:
    """Build the schedule over a dummy weight. Raises ConfigError when its arguments are missing or wrong."""
    name = str(args.lr_scheduler_type.value)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    try:
        get_scheduler(
            name,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(_SOME_STEPS),
            num_training_steps=_SOME_STEPS,
            scheduler_specific_kwargs=scheduler_arguments(args, _SOME_STEPS),
        )
    except (TypeError, ValueError) as error:
        example = _EXAMPLES.get(name)
        fix = f"write for example lr_scheduler_kwargs: {example}" if example else "correct lr_scheduler_kwargs"
        given = f" with lr_scheduler_kwargs: {args.lr_scheduler_kwargs}" if args.lr_scheduler_kwargs else ""
        raise ConfigError(
            f"{config.place('lr_scheduler_type')}: lr_scheduler_type: {name}{given}: the schedule refuses its "
            f"arguments ({first_line(error)}); {fix}, or use lr_scheduler_type: cosine"
        ) from error
    if args.lr_scheduler_kwargs and name.startswith("constant"):
        place = config.place("lr_scheduler_kwargs")
        logger.warning("%s: lr_scheduler_kwargs has no effect: the schedule %s takes none", place, name)


def _check_trackers(config: RunConfig, args: TrainingArguments) -> None:
    """Every tracker is known and its package installed. Raises ConfigError."""
    for name in args.report_to:
        try:
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ImportError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"{config.place('report_to')}: report_to: {name} cannot be used ({first_line(error)}); change it, or "
                "write report_to: none"
            ) from error
