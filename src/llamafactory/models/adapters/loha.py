"""LoHa (Hyeon-Woo et al. 2021, arXiv:2108.06098): W + s (B1 A1) * (B2 A2), an elementwise product, through PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoHaConfig, PeftModel, TaskType

from llamafactory.facts import Facts
from llamafactory.models.adapters._peft import apply_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts("LoHa")


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters, see `_peft.apply_adapter`. Raises ConfigError, ModelError."""
    return apply_adapter(model, config, _options, trainable=trainable, vocab_grown=vocab_grown)


def _options(model: PreTrainedModel, config: RunConfig, targets: list[str]) -> LoHaConfig:
    del model
    return LoHaConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        r=config.lora.lora_rank,
        alpha=config.lora.alpha,
        rank_dropout=config.lora.lora_dropout,
    )
