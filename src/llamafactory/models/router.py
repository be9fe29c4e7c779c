"""The balance loss of mixture-of-experts routers, switched on in a transformers configuration.

The loss is the one of Switch Transformers (arXiv:2101.03961, equations 4 to 6), over all layers: experts times the sum
over experts of (share of tokens sent there) * (mean probability of going there); 1 for even loads, one expert a token.
Most families compute it themselves; for those that only return the logits of their routers it is computed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llamafactory.errors import ConfigError
from llamafactory.models.families import family_facts, router_families

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


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
        *parents, name = facts.router_loss.split(".")
        place = text
        for parent in parents:
            place = getattr(place, parent)
        setattr(place, name, coefficient)


def report_router_loss(model: PreTrainedModel, coefficient: float) -> None:
    """Let the model say its coefficient, and compute the loss where its family does not; in place."""
    model.router_aux_loss_coef = coefficient
    if family_facts(model.config.get_text_config()).router_unsummed:
        model.register_forward_hook(_add_loss, with_kwargs=True)


def _add_loss(model: nn.Module, args: object, inputs: dict[str, Any], output: Any) -> Any:
    """Forward hook: the loss from the logits of the routers, without the tokens that are padding."""
    text = model.config.get_text_config()  # type: ignore[operator, union-attr]
    mask = inputs.get("attention_mask")
    output.aux_loss = load_balancing_loss_func(
        output.router_logits,
        text.num_local_experts,
        text.num_experts_per_tok,
        mask if mask is not None and mask.dim() == 2 else None,
    )
    return output
