"""One checker for what parts state about themselves: which part is chosen, and what it cannot stand beside.

The facts lie in the parts' files (`llamafactory.facts`); reading them imports no part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from llamafactory import env
from llamafactory.config.catalog import options
from llamafactory.config.rules_memory import zero_stage
from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import Rule, Violation, value_of
from llamafactory.facts import (
    ADAMW_ONLY,
    DEEPSPEED,
    PACKED,
    PROCESSES,
    SAME_REFERENCE,
    SHARDED,
    ZERO3,
    Clash,
    Facts,
    Setting,
    read_facts,
)

OPTIMIZER = "optimizer"
QUANTIZER = "quantization_method"
ADAPTER = "finetuning_type"
START = "start of LoRA"
KERNEL = "kernel"


@dataclass(frozen=True)
class Room:
    """A package of parts that state facts.

    while_set: its parts count only while this key has a value. commands: only there; empty means everywhere. several:
    a run may choose several of its parts.
    """

    package: str
    while_set: str | None = None
    commands: tuple[str, ...] = ()
    several: bool = False


FAMILIES = {
    OPTIMIZER: Room("llamafactory.optim", commands=TRAIN),
    ADAPTER: Room("llamafactory.models.adapters", commands=TRAIN),
    START: Room("llamafactory.models.adapters.starts", commands=TRAIN),
    QUANTIZER: Room("llamafactory.models.quantization", while_set="quantization_bit"),
    KERNEL: Room("llamafactory.models.kernels", commands=TRAIN, several=True),
}
"""The key whose values are the names of the parts (a word where there is no one such key) -> their room."""


def chosen_parts(config: RunConfig, family: str) -> dict[str, Facts]:
    """Name -> facts of the parts of a family that the options choose."""
    room = FAMILIES[family]
    if room.while_set and value_of(config, room.while_set) is None:
        return {}
    found = read_facts(room.package)
    return {name: facts for name, facts in found.items() if _choice(config, family, name, facts) is not None}


def claims_optim(config: RunConfig) -> bool:
    """True when the name in `optim` means a part of ours, which transformers must not be asked for."""
    name = config.training.optim
    choices = [choice for facts in read_facts(FAMILIES[OPTIMIZER].package).values() for choice in facts.chosen_by]
    return any(key == "optim" and name in values for key, values in choices)


def replaces_optim(config: RunConfig) -> bool:
    """True when an option other than `optim` chooses the optimizer and its update rule."""
    if claims_optim(config):
        return False
    chosen = chosen_parts(config, OPTIMIZER)
    return any(ADAMW_ONLY in facts.clashes for facts in chosen.values()) or config.galore.use_galore


def part_clashes(config: RunConfig) -> Iterator[Violation]:
    """What each chosen part cannot stand beside; and of most families one part is chosen."""
    for family, room in FAMILIES.items():
        if room.commands and config.command not in room.commands:
            continue
        chosen = chosen_parts(config, family)
        choices = {name: str(_choice(config, family, name, facts)) for name, facts in chosen.items()}
        if len(choices) > 1 and not room.several:
            keys = sorted(choices.values(), key=list(options()).index)
            yield Violation(tuple(keys), f"there is one {family}", "keep one of them")
            continue
        for name, facts in chosen.items():
            yield from clashes_of(config, facts, choices[name])
        for variant in (variant for facts in read_facts(room.package).values() for variant in facts.variants):
            if (choice := _choice(config, family, "", variant)) is not None:
                yield from clashes_of(config, variant, choice)


def clashes_of(config: RunConfig, facts: Facts, choice: str, *, but: Collection[str] = ()) -> Iterator[Violation]:
    """What a part that `choice` has chosen finds among the settings and cannot stand beside. but: keys left out."""
    for clash in facts.clashes:
        if clash.key not in but:
            yield from _violations(config, choice, clash)


def _choice(config: RunConfig, family: str, name: str, facts: Facts) -> str | None:
    """The key whose value chooses the part; None when no value does."""
    return next((key for key, values in facts.chosen_by or ((family, (name,)),) if _holds(config, (key, values))), None)


def _violations(config: RunConfig, choice: str, clash: Clash) -> Iterator[Violation]:
    condition = next((setting[0] for setting in clash.when if _holds(config, setting)), None)
    if clash.key == choice or (clash.when and condition is None) or not _hits(config, clash):
        return
    own = condition if condition is not None and _is_set(config, condition) else choice
    other = clash.key
    if other in _CIRCUMSTANCES:
        shown = _CIRCUMSTANCES[other].shown
        other = next((key for key in shown if _is_set(config, key)), own)
    yield Violation((own,) if other == own else (own, other), clash.why, clash.fix)


@dataclass(frozen=True)
class _Circumstance:
    """holds: whether the run is in it. shown: keys that may have brought it about, for the sentence."""

    holds: Callable[[RunConfig], bool]
    shown: tuple[str, ...] = ()


_CIRCUMSTANCES: Mapping[str, _Circumstance] = {
    PROCESSES: _Circumstance(lambda config: env.world_size() > 1),
    SHARDED: _Circumstance(lambda config: _is_set(config, "fsdp") or env.is_enabled("ACCELERATE_USE_FSDP"), ("fsdp",)),
    DEEPSPEED: _Circumstance(
        lambda config: _is_set(config, "deepspeed") or env.is_enabled("ACCELERATE_USE_DEEPSPEED"), ("deepspeed",)
    ),
    ZERO3: _Circumstance(lambda config: zero_stage(config) == 3, ("deepspeed",)),
    PACKED: _Circumstance(lambda config: config.packs),
    SAME_REFERENCE: _Circumstance(
        lambda config: config.uses_reference and config.preference.ref_model is None, ("use_asft_loss", "stage")
    ),
}


def _hits(config: RunConfig, clash: Clash) -> bool:
    if clash.key in _CIRCUMSTANCES:
        return _CIRCUMSTANCES[clash.key].holds(config)
    if clash.if_given and clash.key not in config.origins:
        return False
    if clash.allowed:
        return value_of(config, clash.key) not in clash.allowed
    return _holds(config, (clash.key, clash.values))


def _holds(config: RunConfig, setting: Setting) -> bool:
    key, values = setting
    return value_of(config, key) in values if values else _is_set(config, key)


def _is_set(config: RunConfig, key: str) -> bool:
    value = value_of(config, key)
    return value != options()[key].default and value not in (None, False, (), "")


RULES: tuple[Rule, ...] = (part_clashes,)
