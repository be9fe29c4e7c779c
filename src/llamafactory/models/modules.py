"""Finding one's way inside a model: its layers, its linear modules, and which of them must stay untouched.

Knows module trees and family facts; changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from llamafactory.errors import ModelError
from llamafactory.models.families import family_facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llamafactory.config.sections.finetuning import FinetuningConfig


@dataclass(frozen=True, slots=True)
class Layers:
    """The decoder layers: `prefix` such as "model.layers" and their number."""

    prefix: str
    count: int

    def index_of(self, name: str) -> int | None:
        """Layer number of a parameter or module name; None outside the layers."""
        rest = name.removeprefix(self.prefix + ".")
        head = rest.split(".", 1)[0]
        return int(head) if rest != name and head.isdigit() else None

    def inner(self, name: str) -> str:
        """The part of a name after the layer number, such as "self_attn.q_proj.weight"."""
        return name.removeprefix(self.prefix + ".").split(".", 1)[-1]


def find_layers(model: PreTrainedModel) -> Layers:
    """Locate the decoder layers of the language model. Raises ModelError when there are none."""
    text = model.config.get_text_config()
    count = getattr(text, "num_hidden_layers", None) or getattr(text, "n_layer", None)
    skipped = family_facts(model.config).vision
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and not has_part(name, skipped):
            return Layers(name, len(module))
    raise ModelError(
        f"{model.config.model_type}: no list of {count} layers was found in this model, so single layers cannot be "
        "chosen; use finetuning_type full or lora"
    )


def has_part(name: str, keys: tuple[str, ...] | frozenset[str]) -> bool:
    """True when one of the dotted `keys` occurs in the dotted `name` at component borders."""
    return any(f".{key}." in f".{name}." for key in keys)


def frozen_parts(model: PreTrainedModel, config: FinetuningConfig) -> tuple[str, ...]:
    """Names of a multimodal model's parts that the options keep as they are; empty for text models."""
    facts = family_facts(model.config)
    if not facts.is_composite:
        return ()
    frozen: tuple[str, ...] = ()
    if config.freeze_vision_tower:
        frozen += facts.vision
    if config.freeze_multi_modal_projector:
        frozen += facts.projector
    if config.freeze_language_model:
        frozen += facts.language
    return frozen


def linear_modules(model: PreTrainedModel) -> list[str]:
    """Full names of all linear modules except the output head: those whose class name says Linear, not Embedding."""
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__ and "Embedding" not in type(module).__name__ and module is not head
    ]


def has_fused_experts(model: nn.Module) -> bool:
    """True when expert weights are 3-D parameters, which a search for linear modules cannot see."""
    return any(parameter.dim() == 3 and has_part(name, ("experts",)) for name, parameter in model.named_parameters())
