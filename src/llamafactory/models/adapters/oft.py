"""OFT (Qiu et al. 2023, arXiv:2306.07280): W -> W R with R block-diagonal orthogonal, through PEFT.

R = (I + Q)(I - Q)^-1 with skew-symmetric Q, the inverse as a Neumann series of five terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import OFTConfig, PeftModel, TaskType

from llamafactory.facts import Facts
from llamafactory.models.adapters._peft import apply_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts("OFT")


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters, see `_peft.apply_adapter`. Raises ConfigError, ModelError."""
    return apply_adapter(model, config, _options, trainable=trainable, vocab_grown=vocab_grown)


def _options(model: PreTrainedModel, config: RunConfig, targets: list[str]) -> OFTConfig:
    del model
    return OFTConfig(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        r=config.oft.oft_rank,
        oft_block_size=config.oft.oft_block_size,
        module_dropout=config.oft.module_dropout,
    )
