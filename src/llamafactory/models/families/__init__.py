"""What we know about model families, by `model_type`: facts as data, and one file per family that needs code.

`facts.yaml` holds the table. A family that needs code gets `<model_type>.py` here. Nothing outside this package
compares a `model_type`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class FamilyFacts:
    """One family.

    attention: our `flash_attn` value to transformers' name, where it differs from the rule. router_logits: the config
    has `output_router_logits`. router_loss: name of its router loss coefficient, with dots where it is nested.
    router_unsummed: transformers returns router logits and computes no loss from them. checkpointing: gradient
    checkpointing works. projector, vision, language: module names of a multimodal model's parts. lora_excluded:
    modules that LoRA must not touch. shifted, depths: its decoder layers can do shifted sparse attention,
    mixture-of-depths.
    """

    attention: dict[str, str] = field(default_factory=dict)
    router_logits: bool = False
    router_loss: str | None = None
    router_unsummed: bool = False
    checkpointing: bool = True
    projector: tuple[str, ...] = ()
    vision: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    lora_excluded: tuple[str, ...] = ()
    shifted: bool = False
    depths: bool = False

    @property
    def is_composite(self) -> bool:
        """True when the model has parts besides the language model."""
        return bool(self.vision or self.projector)


_TUPLES = ("projector", "vision", "language", "lora_excluded")


@functools.cache
def _table() -> dict[str, FamilyFacts]:
    text = resources.files(__package__).joinpath("facts.yaml").read_text(encoding="utf-8")
    rows = yaml.safe_load(text)
    return {name: _facts(row) for name, row in rows.items()}


def _facts(row: dict[str, object]) -> FamilyFacts:
    values = {key: tuple(value) if key in _TUPLES else value for key, value in row.items()}  # type: ignore[arg-type]
    return FamilyFacts(**values)  # type: ignore[arg-type]


def families_with(fact: str) -> list[str]:
    """Families for which a fact of this name holds."""
    return sorted(name for name, facts in _table().items() if getattr(facts, fact))


def router_families() -> list[str]:
    """Families with a router loss that can be weighted."""
    return sorted(name for name, facts in _table().items() if facts.router_logits or facts.router_loss)


def family_facts(config: PretrainedConfig) -> FamilyFacts:
    """Facts of a transformers configuration's family; the defaults for a family we know nothing special about."""
    return _table().get(config.model_type, FamilyFacts())
