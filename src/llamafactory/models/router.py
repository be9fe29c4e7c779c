"""The balance loss of mixture-of-experts routers, switched on in a transformers configuration. Knows no model code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.errors import ConfigError
from llamafactory.models.families import family_facts, router_families

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def set_router_loss(hf_config: PretrainedConfig, coefficient: float) -> None:
    """Make the model return its router loss, weighted by `coefficient`; in place.

    Raises ConfigError for a model without such a loss.
    """
    text = hf_config.get_text_config()
    facts = family_facts(text)
    if not facts.router_logits and facts.router_loss is None:
        raise ConfigError(
            f"moe_aux_loss_coef: {text.model_type} has no router loss (families that have one: "
            f"{', '.join(router_families())}); remove moe_aux_loss_coef"
        )
    if facts.router_logits:
        text.output_router_logits = True
    if facts.router_loss is not None:
        setattr(text, facts.router_loss, coefficient)
