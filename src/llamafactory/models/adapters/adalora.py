"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): W + s B diag(e) A, whose ranks shrink while it learns, through PEFT.

Every matrix starts with `adalora_init_rank` triplets (column of B, value e, row of A). Which of them stay is decided
during the run by `training.callbacks.rank_allocation`; a triplet that goes has e = 0, and the file keeps it, so that an
interrupted run goes on exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import AdaLoraConfig, PeftModel, TaskType

from llamafactory.facts import Clash, Facts
from llamafactory.models.adapters._peft import apply_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "AdaLoRA",
    clashes=(
        Clash("fp16", "its scores read gradients, which fp16 scales", "use bf16"),
        Clash("fsdp", "its scores read whole gradients, and FSDP shards them", "set finetuning_type to lora"),
        Clash("deepspeed", "its scores read gradients that DeepSpeed keeps", "set finetuning_type to lora"),
        Clash(
            "optim", "its scores read gradients, which are gone after the update", "use another optim",
            values=("lomo", "adalomo"),
        ),
    ),
)  # fmt: skip


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters, see `_peft.apply_adapter`. Raises ConfigError, ModelError."""
    applied = apply_adapter(model, config, _options, trainable=trainable, vocab_grown=vocab_grown)
    for name, parameter in applied.named_parameters():
        if ".ranknum." in name:  # PEFT's counter of ranks, which learns nothing; on a 16-bit base PEFT lets it
            parameter.requires_grad_(False)
    return applied


def init_rank(config: RunConfig) -> int:
    """Triplets of every matrix at first: as given, or 1.5 times the final average, as in the paper."""
    return config.adalora.adalora_init_rank or -(-3 * config.lora.lora_rank // 2)


def _options(model: PreTrainedModel, config: RunConfig, targets: list[str]) -> AdaLoraConfig:
    del model
    return AdaLoraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        init_r=init_rank(config),
        target_r=config.lora.lora_rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.lora_dropout,
        total_step=1,  # PEFT's own schedule, which is not used, asks for one
    )
