"""VeRA (Kopiczko et al. 2023, arXiv:2310.11454): W + diag(b) B diag(d) A, through PEFT.

A and B are random, frozen and shared by all layers. The adapter file holds them too, so that it does not depend on a
random generator. lora_alpha has no part in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftModel, TaskType, VeraConfig

from llamafactory.facts import Facts
from llamafactory.models.adapters._peft import apply_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts("VeRA")


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters, see `_peft.apply_adapter`. Raises ConfigError, ModelError."""
    return apply_adapter(model, config, _options, trainable=trainable, vocab_grown=vocab_grown)


def _options(model: PreTrainedModel, config: RunConfig, targets: list[str]) -> VeraConfig:
    del model
    return VeraConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        r=config.lora.lora_rank,
        vera_dropout=config.lora.lora_dropout,
        projection_prng_key=config.training.seed,
        save_projection=True,
    )
