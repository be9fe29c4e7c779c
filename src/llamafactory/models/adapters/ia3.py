"""IA3 (Liu et al. 2022, arXiv:2205.05638): a learned factor for every feature, through PEFT.

Output features are scaled; of the second matrix of the feed-forward block the input features. Has no rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import IA3Config, PeftModel, TaskType

from llamafactory.facts import Facts
from llamafactory.models.adapters._peft import apply_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts("IA3")


SECOND_MATRIX = frozenset({"down_proj", "fc2", "w2", "wo", "dense_4h_to_h"})


def apply(
    model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool
) -> PreTrainedModel | PeftModel:
    """Merge, resume or create adapters, see `_peft.apply_adapter`. Raises ConfigError, ModelError."""
    return apply_adapter(model, config, _options, trainable=trainable, vocab_grown=vocab_grown)


def _options(model: PreTrainedModel, config: RunConfig, targets: list[str]) -> IA3Config:
    del model
    return IA3Config(
        task_type=TaskType.CAUSAL_LM,
        target_modules=targets,
        feedforward_modules=[name for name in targets if name.rsplit(".", 1)[-1] in SECOND_MATRIX],
    )
