"""One checker for what parts state about themselves: which part is chosen, and what it cannot stand beside.

The facts lie in the parts' files (`llamafactory.facts`); reading them imports no part.
"""

from __future__ import annotations

from collections.abc import Iterator

from llamafactory import env
from llamafactory.config.catalog import options
from llamafactory.config.run import RunConfig
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import Rule, Violation, value_of
from llamafactory.facts import (
    ADAMW_ONLY,
    DEEPSPEED,
    PACKED,
    PROCESSES,
    SHARDED,
    Clash,
    Facts,
    Setting,
    read_facts,
)

OPTIMIZER, KERNEL = "optimizer", "kernel"
FAMILIES = {OPTIMIZER: "llamafactory.optim", KERNEL: "llamafactory.models.kernels"}
"""The key whose values are the names of the parts (a word, where there is no such key) -> their package."""

_SEVERAL = {KERNEL}
"""Families of which a run may choose several parts."""


def chosen_parts(config: RunConfig, family: str) -> dict[str, Facts]:
    """Name -> facts of the parts of a family that the options choose."""
    found = read_facts(FAMILIES[family])
    return {name: facts for name, facts in found.items() if _choice(config, family, name, facts) is not None}


def claims_optim(config: RunConfig) -> bool:
    """True when the name in `optim` means a part of ours, which transformers must not be asked for."""
    name = config.training.optim
    choices = [choice for facts in read_facts(FAMILIES[OPTIMIZER]).values() for choice in facts.chosen_by]
    return any(key == "optim" and name in values for key, values in choices)


def replaces_optim(config: RunConfig) -> bool:
    """True when an option other than `optim` chooses the optimizer and its update rule."""
    if claims_optim(config):
        return False
    chosen = chosen_parts(config, OPTIMIZER)
    return any(ADAMW_ONLY in facts.clashes for facts in chosen.values()) or config.galore.use_galore


def part_clashes(config: RunConfig) -> Iterator[Violation]:
    """What each chosen part cannot stand beside; and of most families one part is chosen."""
    if config.command not in TRAIN:
        return
    for family in FAMILIES:
        chosen = chosen_parts(config, family)
        choices = {name: str(_choice(config, family, name, facts)) for name, facts in chosen.items()}
        if len(choices) > 1 and family not in _SEVERAL:
            keys = sorted(choices.values(), key=list(options()).index)
            yield Violation(tuple(keys), f"there is one {family}", "keep one of them")
            continue
        for name, facts in chosen.items():
            for clash in facts.clashes:
                yield from _violations(config, choices[name], clash)


def _choice(config: RunConfig, family: str, name: str, facts: Facts) -> str | None:
    """The key whose value chooses the part; None when no value does."""
    return next((key for key, values in facts.chosen_by or ((family, (name,)),) if _holds(config, (key, values))), None)


def _violations(config: RunConfig, choice: str, clash: Clash) -> Iterator[Violation]:
    condition = next((setting[0] for setting in clash.when if _holds(config, setting)), None)
    if clash.key == choice or (clash.when and condition is None) or not _hits(config, clash):
        return
    own = condition or choice
    unset = clash.key in {SHARDED, DEEPSPEED} and not _is_set(config, clash.key)
    keyless = clash.key in {PROCESSES, PACKED} or unset
    yield Violation((own,) if keyless or clash.key == own else (own, clash.key), clash.why, clash.fix)


def _hits(config: RunConfig, clash: Clash) -> bool:
    if clash.key == PROCESSES:
        return env.world_size() > 1
    if clash.key == PACKED:
        return config.packs
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
