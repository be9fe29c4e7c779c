"""Which number format a run loads, computes and trains in: one decision, made once and printed in one line.

Knows options and the checkpoint's format; touches no weights except in `cast_parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from llamafactory.errors import ConfigError

if TYPE_CHECKING:
    from llamafactory.config.run import RunConfig

_INFER_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class DtypePlan:
    """load: format of the weights as read. frozen: of weights that are not trained. trainable: of those that are."""

    load: torch.dtype
    frozen: torch.dtype
    trainable: torch.dtype
    reason: str

    def describe(self, *, trainable: bool) -> str:
        """One line for the log."""
        if not trainable:
            return f"dtype: weights {_name(self.frozen)} ({self.reason})"
        return f"dtype: frozen weights {_name(self.frozen)}, trained weights {_name(self.trainable)} ({self.reason})"


def plan_dtype(config: RunConfig, checkpoint: torch.dtype | None, *, trainable: bool) -> DtypePlan:
    """Decide the formats. checkpoint: the format the weights are stored in, None when unknown.

    Trained weights are fp32 unless `pure_bf16` (or BAdam) is used: a step of 1e-5 does not survive bf16 rounding. A
    full fine-tune therefore reads its weights as fp32 at once; freeze reads them as stored, so that nothing is rounded
    twice. Raises ConfigError.
    """
    if not trainable:
        return _inference_plan(config, checkpoint)
    compute, reason = _compute_dtype(config, checkpoint)
    if config.finetuning.pure_bf16:
        return DtypePlan(torch.bfloat16, torch.bfloat16, torch.bfloat16, reason)
    if config.badam.use_badam:
        return DtypePlan(compute, compute, compute, f"{reason}, use_badam")
    load = {"full": torch.float32, "freeze": checkpoint or torch.float32}.get(
        config.finetuning.finetuning_type, compute
    )
    return DtypePlan(load, compute, torch.float32, reason)


def _inference_plan(config: RunConfig, checkpoint: torch.dtype | None) -> DtypePlan:
    wanted = config.model.infer_dtype
    if wanted == "auto":
        dtype = checkpoint or torch.float32
        return DtypePlan(dtype, dtype, dtype, "infer_dtype: auto, as stored")
    dtype = _INFER_DTYPES[wanted]
    return DtypePlan(dtype, dtype, dtype, f"infer_dtype: {wanted}")


def _compute_dtype(config: RunConfig, checkpoint: torch.dtype | None) -> tuple[torch.dtype, str]:
    chosen = [
        name
        for name, enabled in (
            ("pure_bf16", config.finetuning.pure_bf16),
            ("bf16", config.training.bf16),
            ("fp16", config.training.fp16),
        )
        if enabled
    ]
    if "fp16" in chosen and len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are both true, but weights have one format; keep one of them")
    if chosen:
        return (torch.float16 if chosen[0] == "fp16" else torch.bfloat16), f"{chosen[0]}: true"
    if checkpoint in (torch.bfloat16, torch.float16) and _accelerator_supports(checkpoint):
        return checkpoint, "no bf16 or fp16 given, frozen weights stay as stored"
    return torch.float32, "no bf16 or fp16 given"


def _accelerator_supports(dtype: torch.dtype) -> bool:
    if torch.cuda.is_available():
        return dtype == torch.float16 or torch.cuda.is_bf16_supported()
    return False


def cast_parameters(model: nn.Module, plan: DtypePlan) -> None:
    """Cast floating point parameters in place: trained ones to `plan.trainable`, frozen ones to `plan.frozen`.

    Quantized (integer) parameters and buffers are left alone.
    """
    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.requires_grad and parameter.dtype != plan.trainable:
            parameter.data = parameter.data.to(plan.trainable)
        elif not parameter.requires_grad and plan.load != plan.frozen and parameter.dtype == plan.load:
            parameter.data = parameter.data.to(plan.frozen)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
