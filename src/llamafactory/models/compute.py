"""How the loaded model computes in training: its attention, its checkpoints, its kernels, as the options choose.

Orders the parts of `models.kernels` and `models.checkpointing`. Appends what was done to the notes of a load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from llamafactory.logs import notice
from llamafactory.models.checkpointing import enable_checkpointing
from llamafactory.models.families import family_facts
from llamafactory.models.kernels.fp8 import apply_fp8
from llamafactory.models.kernels.liger import apply_liger
from llamafactory.models.kernels.offload import offload_checkpoints
from llamafactory.models.kernels.shift_attn import register_shifted
from llamafactory.models.router import report_router_loss

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

    from llamafactory.config.run import RunConfig


def attention_kernel(config: RunConfig, hf_config: PretrainedConfig, notes: list[str]) -> str | None:
    """Name of an attention of ours for `attn_implementation`; None without one. Raises ModelError."""
    if not config.compute.shift_attn:
        return None
    notes.append("shift_attn: groups of a quarter of each example, in training; full attention in evaluation")
    return register_shifted(hf_config)


def add_checkpoints(model: PreTrainedModel, config: RunConfig, notes: list[str]) -> None:
    """Recompute the layers that learn, in place, unless the options or the family say no."""
    compute = config.compute
    if compute.disable_gradient_checkpointing or compute.use_unsloth:
        return
    if not family_facts(model.config).checkpointing:
        if compute.use_unsloth_gc:
            notice(f"use_unsloth_gc has no effect: {model.config.model_type} cannot recompute its layers")
        return
    layers = enable_checkpointing(model, reentrant=compute.use_reentrant_gc)
    moved = offload_checkpoints(model) if compute.use_unsloth_gc else 0
    notes.append(f"gradient checkpointing: {layers} layers{', inputs in CPU memory' if moved else ''}")


def add_kernels(model: PreTrainedModel | PeftModel, config: RunConfig, notes: list[str]) -> None:
    """Exchange the kernels of a model whose trained parameters are settled, in place."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if config.compute.moe_aux_loss_coef:
        report_router_loss(base, config.compute.moe_aux_loss_coef)
    if config.compute.enable_liger_kernel:
        given = cast("Mapping[str, bool] | None", config.training.extra.get("liger_kernel_config"))
        if note := apply_liger(base, given):
            notes.append(note)
    if config.fp8.fp8 or config.fp8.fp8_enable_fsdp_float8_all_gather:
        gathers = config.fp8.fp8_enable_fsdp_float8_all_gather
        if gathers and not config.training.fsdp:
            notice("fp8_enable_fsdp_float8_all_gather gathers nothing: this run is not sharded by fsdp")
        notes.append(apply_fp8(model, sharded_gather=gathers and bool(config.training.fsdp)))
