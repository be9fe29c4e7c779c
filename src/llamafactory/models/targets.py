"""Which modules and weights get an adapter, and which are trained in full beside it. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamafactory.errors import ConfigError, did_you_mean
from llamafactory.logs import notice
from llamafactory.models.adapters import freeze
from llamafactory.models.families import family_facts
from llamafactory.models.modules import find_layers, frozen_parts, has_fused_experts, has_part, linear_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.run import RunConfig


def target_modules(
    model: PreTrainedModel, config: RunConfig, *, key: str = "lora_target", tells_experts: bool = True
) -> list[str]:
    """Module names for PEFT: last components where that is unambiguous, full names otherwise.

    key: the option that names them. tells_experts: say so when `all` leaves fused experts out. Raises ConfigError.
    """
    wanted = config.oft.oft_target if key == "oft_target" else config.lora.lora_target
    facts = family_facts(model.config)
    if "all" in wanted:
        names = [name for name in linear_modules(model) if not has_part(name, facts.projector + facts.lora_excluded)]
        if tells_experts and has_fused_experts(model):
            notice(f"{key}: all does not reach the fused expert weights of this model; {_expert_hint(model, key)}")
    else:
        names = _named_modules(model, wanted, key)
    frozen = frozen_parts(model, config.finetuning) + facts.lora_excluded
    kept = [name for name in names if not has_part(name, frozen)]
    if config.finetuning.use_llama_pro:
        kept = _expanded_only(model, config, kept)
    if not kept:
        raise ConfigError(f"{key}: no module is left that may learn; name other modules or unfreeze parts")
    if facts.is_composite or config.finetuning.use_llama_pro:
        return kept
    return sorted(wanted) if "all" not in wanted else sorted({name.rsplit(".", 1)[-1] for name in kept})


def _named_modules(model: PreTrainedModel, wanted: tuple[str, ...], key: str) -> list[str]:
    modules, linear = dict(model.named_modules()), set(linear_modules(model))  # packed ones may have no `weight`
    found: list[str] = []
    head = tied_head(model)
    shared = [name for name in wanted if head is not None and name in (head, *embedding_names(model))]
    if shared:
        raise ConfigError(
            f"{key}: {shared[0]!r} is the input embedding and the output head in one weight, which a low-rank "
            "adapter cannot change for one alone; use additional_target: embed_tokens"
        )
    for target in wanted:
        matches = [name for name in modules if name == target or name.endswith(f".{target}")]
        if not matches:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear_modules(model)})
            raise ConfigError(
                f"{key}: the model has no module {target!r} (linear modules: {', '.join(known)})"
                f"{did_you_mean(target, known)}"
            )
        found.extend(matches)
        unfit = next((name for name in matches if not (hasattr(modules[name], "weight") or name in linear)), None)
        if unfit is not None:
            inner = sorted({name.rsplit(".", 1)[-1] for name in linear_modules(model) if name.startswith(f"{unfit}.")})
            raise ConfigError(
                f"{key}: {target!r} is a {type(modules[unfit]).__name__}, not a layer with a weight; "
                f"name the layers inside it ({', '.join(inner)})"
            )
    return found


def _expanded_only(model: PreTrainedModel, config: RunConfig, names: list[str]) -> list[str]:
    layers = find_layers(model)
    chosen = freeze.chosen_layers(layers.count, config.freeze.freeze_trainable_layers, llama_pro=True)
    return [name for name in names if layers.index_of(name) in chosen]


def modules_to_save(model: PreTrainedModel, config: RunConfig, *, vocab_grown: bool) -> tuple[str, ...]:
    """Modules trained in full: additional_target, and the embeddings when the vocabulary grew. Raises ConfigError."""
    wanted = list(config.lora.additional_target)
    modules = [name for name, _ in model.named_modules()]
    known = sorted({name.rsplit(".", 1)[-1] for name in modules if name and not name[-1].isdigit()})
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise ConfigError(
                f"additional_target: the model has no module {target!r} (choose from {', '.join(known)})"
                f"{did_you_mean(target, known)}"
            )
    embeddings = embedding_names(model)
    head = tied_head(model)
    if head in wanted:  # one weight under two names: keep the name that PEFT ties the other to
        wanted = [name for name in dict.fromkeys([*wanted, *embeddings]) if name != head]
    if vocab_grown and not set(embeddings) <= set(wanted):
        clash = set(embeddings) & set(config.lora.lora_target)
        if clash:
            raise ConfigError(
                f"lora_target: {sorted(clash)[0]!r} must be trained in full because the vocabulary grew; "
                "remove it from lora_target"
            )
        notice(f"the vocabulary grew: {', '.join(embeddings)} are trained in full and saved with the adapter")
        wanted += [name for name in embeddings if name not in wanted]
    return tuple(wanted)


def embedding_paths(model: PreTrainedModel) -> list[str]:
    """Full names of the input embedding and, unless tied to it, the output embedding."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is inputs.weight
    return [name for name, module in model.named_modules() if module is inputs or (module is head and not tied)]


def embedding_names(model: PreTrainedModel) -> list[str]:
    return [name.rsplit(".", 1)[-1] for name in embedding_paths(model)]


def tied_head(model: PreTrainedModel) -> str | None:
    """Last name component of the output embedding when it shares its weight with the input embedding."""
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not inputs.weight:
        return None
    return next(name for name, module in model.named_modules() if module is head).rsplit(".", 1)[-1]


def target_parameters(model: PreTrainedModel, config: RunConfig) -> list[str]:
    """Names of weights that are no module of their own, such as fused experts, for PEFT. Raises ConfigError."""
    names = [name for name, parameter in model.named_parameters() if parameter.dim() == 3]
    for target in config.lora.lora_target_parameters:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = _fused_names(model)
            raise ConfigError(
                f"lora_target_parameters: the model has no 3-D weight {target!r} (fused weights: "
                f"{', '.join(known) or 'none'}){did_you_mean(target, known)}"
            )
    return list(config.lora.lora_target_parameters)


def _expert_hint(model: PreTrainedModel, key: str) -> str:
    if key == "oft_target":
        return "attention and others learn"
    return f"to adapt them set lora_target_parameters: {','.join(_fused_names(model))}"


def _fused_names(model: PreTrainedModel) -> list[str]:
    """Fused expert weights as `lora_target_parameters` names them, without the layer number."""
    layers = find_layers(model)
    fused = [name for name, weight in model.named_parameters() if weight.dim() == 3 and has_part(name, ("experts",))]
    return sorted({layers.inner(name) for name in fused})
