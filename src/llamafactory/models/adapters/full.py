"""Full fine-tuning: every parameter learns, except the parts of a multimodal model that the options keep frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.facts import QUANTIZED, Facts
from llamafactory.models.modules import frozen_parts, has_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts("full", clashes=(QUANTIZED,))


def apply(model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool) -> PreTrainedModel:
    """Choose the trained parameters in place and return the same model."""
    del vocab_grown  # embeddings learn anyway
    frozen = frozen_parts(model, config.finetuning)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable and parameter.is_floating_point() and not has_part(name, frozen))
    return model
