"""One checker for what parts state about themselves: which part is chosen, and what it cannot stand beside.

The facts lie in the parts' files (`llamafactory.facts`); reading them imports no part.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from llamafactory import env
from llamafactory.config.catalog import options
from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import Rule, Violation, value_of
from llamafactory.facts import ADAMW_ONLY, DEEPSPEED, PROCESSES, SHARDED, Clash, Facts, Setting, read_facts

OPTIMIZER = "optimizer"
QUANTIZER = "quantization_method"


@dataclass(frozen=True)
class Room:
    """A package of parts that state facts. while_set: its parts count only while this key has a value. commands: only
    there; empty means everywhere."""

    package: str
    while_set: str | None = None
    commands: tuple[str, ...] = ()


FAMILIES = {
    OPTIMIZER: Room("llamafactory.optim", commands=TRAIN),
    QUANTIZER: Room("llamafactory.models.quantization", while_set="quantization_bit"),
}
"""The key whose values are the names of the parts (for optimizers, which have no such key, a word) -> their room."""


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
    """What each chosen part cannot stand beside; and of each family one part is chosen."""
    for family, room in FAMILIES.items():
        if room.commands and config.command not in room.commands:
            continue
        chosen = chosen_parts(config, family)
        choices = {name: str(_choice(config, family, name, facts)) for name, facts in chosen.items()}
        if len(choices) > 1:
            keys = sorted(choices.values(), key=list(options()).index)
            yield Violation(tuple(keys), f"there is one {family}", "keep one of them")
            continue
        for name, facts in chosen.items():
            yield from clashes_of(config, facts, choices[name])


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
    own = condition or choice
    launched = clash.key == PROCESSES or (clash.key in {SHARDED, DEEPSPEED} and not _is_set(config, clash.key))
    yield Violation((own,) if launched or clash.key == own else (own, clash.key), clash.why, clash.fix)


def _hits(config: RunConfig, clash: Clash) -> bool:
    if clash.key == PROCESSES:
        return env.world_size() > 1
    if clash.key == SHARDED and env.is_enabled("ACCELERATE_USE_FSDP"):
        return True
    if clash.key == DEEPSPEED and env.is_enabled("ACCELERATE_USE_DEEPSPEED"):
        return True
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
