"""Freeze fine-tuning: some decoder layers learn, wholly or in part, and chosen modules outside them.

LLaMA Pro (Wu et al. 2024, arXiv:2401.02415): of a model whose every L/n-th layer is an inserted copy, only those learn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.errors import ConfigError, did_you_mean
from llamafactory.facts import QUANTIZED, Clash, Facts
from llamafactory.logs import notice
from llamafactory.models.families import family_facts
from llamafactory.models.modules import Layers, find_layers, frozen_parts, has_part

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig

FACTS = Facts(
    "freeze",
    clashes=(QUANTIZED,),
    variants=(
        Facts(
            "LLaMA Pro",
            chosen_by=(("use_llama_pro", (True,)),),
            clashes=(
                Clash(
                    "finetuning_type", "full training has no chosen blocks", "set finetuning_type to freeze",
                    values=("full",),
                ),
            ),
        ),
    ),
)  # fmt: skip


def apply(model: PreTrainedModel, config: RunConfig, *, trainable: bool, vocab_grown: bool) -> PreTrainedModel:
    """Choose the trained parameters in place and return the same model. Raises ConfigError for unknown module names."""
    model.requires_grad_(False)
    if not trainable:
        return model
    layers = find_layers(model)
    chosen = chosen_layers(
        layers.count, config.freeze.freeze_trainable_layers, llama_pro=config.finetuning.use_llama_pro
    )
    inside = _inside(model, layers, config.freeze.freeze_trainable_modules)
    outside = _outside(model, layers, config)
    frozen = frozen_parts(model, config.finetuning)
    for name, parameter in model.named_parameters():
        layer = layers.index_of(name)
        if layer is None:
            learns = has_part(name, outside)
        else:
            learns = layer in chosen and (inside is None or has_part(layers.inner(name), inside))
        parameter.requires_grad_(learns and not has_part(name, frozen) and parameter.is_floating_point())
    if vocab_grown and not model.get_input_embeddings().weight.requires_grad:
        notice("resize_vocab: rows of new tokens do not learn; add embed_tokens and lm_head to freeze_extra_modules")
    return model


def chosen_layers(count: int, wanted: int, *, llama_pro: bool) -> frozenset[int]:
    """Numbers of the layers that learn: the last `wanted`, the first `-wanted`, or LLaMA Pro's inserted ones.

    Raises ConfigError for 0 and for a number that does not divide the layers under LLaMA Pro.
    """
    if wanted == 0:
        raise ConfigError(
            "freeze_trainable_layers: got 0, which trains no layer; give n for the last or -n for the first"
        )
    if llama_pro:
        if wanted < 0 or count % wanted:
            raise ConfigError(
                f"freeze_trainable_layers: got {wanted} with use_llama_pro, but the model has {count} layers, which "
                f"must be a multiple of it; choose a divisor of {count}"
            )
        stride = count // wanted
        return frozenset(range(stride - 1, count, stride))
    if wanted > 0:
        return frozenset(range(max(0, count - wanted), count))
    return frozenset(range(min(-wanted, count)))


def _inside(model: PreTrainedModel, layers: Layers, wanted: tuple[str, ...]) -> tuple[str, ...] | None:
    """Names of modules inside a layer that learn; None for whole layers."""
    if "all" in wanted:
        return None
    known = {layers.inner(name) for name, _ in model.named_parameters() if layers.index_of(name) is not None}
    _check("freeze_trainable_modules", wanted, known)
    return wanted


def _outside(model: PreTrainedModel, layers: Layers, config: RunConfig) -> tuple[str, ...]:
    wanted = config.freeze.freeze_extra_modules
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    _check("freeze_extra_modules", wanted, {name for name in names if layers.index_of(name) is None})
    if "lm_head" in wanted and model.get_output_embeddings() is not None:
        wanted += tuple(_shared_with_head(model))
    if not config.finetuning.freeze_multi_modal_projector:
        wanted += family_facts(model.config).projector
    return wanted


def _shared_with_head(model: PreTrainedModel) -> list[str]:
    """The name under which a tied output embedding is listed among the parameters."""
    weight = model.get_output_embeddings().weight
    return [name for name, parameter in model.named_parameters() if parameter is weight]


def _check(key: str, wanted: tuple[str, ...], parameter_names: set[str]) -> None:
    """Raise ConfigError unless every wanted module is part of some parameter name."""
    known = sorted({part for name in parameter_names for part in name.split(".")[:-1] if not part.isdigit()})
    for module in wanted:
        if not any(has_part(name, (module,)) for name in parameter_names):
            raise ConfigError(
                f"{key}: the model has no module {module!r} there (choose from {', '.join(known)})"
                f"{did_you_mean(module, known)}"
            )
