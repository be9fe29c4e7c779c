"""Loading and LoRA through the package unsloth (its documented `FastLanguageModel`), with its kernels and checkpoints.

The trainer gives no labels, so the model computes its logits by its output embedding as always, and the loss is ours.
Knows unsloth's two calls and nothing behind them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llamafactory.config.run import RunConfig
from llamafactory.errors import ModelError, first_line
from llamafactory.facts import SHARDED, Clash, Facts
from llamafactory.models.kernels import require_gpu
from llamafactory.parts import require

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

FACTS = Facts(
    "Unsloth",
    chosen_by=(("use_unsloth", (True,)),),
    clashes=(
        Clash("finetuning_type", "unsloth has LoRA and full training", "use lora", allowed=("lora", "full")),
        Clash("train_from_scratch", "unsloth reads stored weights", "remove one of the two", values=(True,)),
        Clash("rope_scaling", "unsloth stretches positions to cutoff_len by itself", "remove rope_scaling"),
        Clash("quantization_method", "unsloth has bnb alone", "use bnb", allowed=("bnb",)),
        Clash("quantization_type", "unsloth rounds to nf4", "remove quantization_type", values=("fp4",)),
        Clash(
            "double_quantization", "unsloth always quantizes the scales too", "remove double_quantization",
            values=(False,),
        ),
        Clash("lora_target_parameters", "unsloth puts adapters on linear layers", "remove one of the two"),
        Clash("flash_attn", "unsloth chooses its own attention", "remove flash_attn", allowed=("auto",)),
        Clash("use_dora", "unsloth has no DoRA", "remove use_dora", values=(True,)),
        Clash("pissa_init", "unsloth starts adapters plainly", "remove pissa_init", values=(True,)),
        Clash("lora_init", "unsloth starts adapters plainly", "remove lora_init", allowed=("default",)),
        Clash(SHARDED, "unsloth does not shard models", "train without fsdp"),
    ),
)  # fmt: skip


def check(config: RunConfig) -> None:
    """Raise ConfigError without a GPU, MissingPackageError without the package."""
    require("unsloth", f"{config.place('use_unsloth')}: use_unsloth: true", install="unsloth")
    require_gpu(config, "use_unsloth", "unsloth")


def load_unsloth(config: RunConfig, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Read the weights of a folder for training. Raises ModelError for what unsloth does not know."""
    from unsloth import FastLanguageModel

    bits = config.quantization.quantization_bit
    try:
        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(folder),
            max_seq_length=config.data.cutoff_len,
            dtype=dtype,
            **{f"load_in_{width}bit": width == bits for width in (4, 8)},
            full_finetuning=config.finetuning.finetuning_type == "full",
            device_map={"": torch.cuda.current_device()},
            fix_tokenizer=False,
            trust_remote_code=config.hub.trust_remote_code,
            use_gradient_checkpointing=checkpoints(config),
        )
    except (NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            f"use_unsloth: unsloth cannot load {folder} ({first_line(error)}); remove use_unsloth"
        ) from error
    loaded: PreTrainedModel = model
    return loaded


def wrap_lora(model: PreTrainedModel, options: LoraConfig, config: RunConfig) -> PeftModel:
    """Put a new adapter with PEFT's `options` onto a model that `load_unsloth` read."""
    from unsloth import FastLanguageModel

    wrapped: PeftModel = FastLanguageModel.get_peft_model(
        model,
        r=options.r,
        target_modules=sorted(options.target_modules or ()),
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        bias="none",
        use_rslora=options.use_rslora,
        modules_to_save=options.modules_to_save,
        use_gradient_checkpointing=checkpoints(config),
        random_state=config.training.seed,
        max_seq_length=config.data.cutoff_len,
    )
    return wrapped


def checkpoints(config: RunConfig) -> str | bool:
    """What unsloth is told about checkpoints: its own kind, in CPU memory, or none."""
    return False if config.compute.disable_gradient_checkpointing else "unsloth"
