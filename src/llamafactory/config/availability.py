"""Which settings this version cannot run yet, as data in `unavailable.yaml`.

Knows no part: a part that gets built loses its line in the data.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from llamafactory.config.catalog import options
from llamafactory.config.run import RunConfig
from llamafactory.config.violation import show, value_of
from llamafactory.errors import ConfigError


@dataclass(frozen=True)
class Gap:
    """A missing part: the key, its values without a part (empty: all but the default), where it matters.

    commands, stages: only there; empty means everywhere.
    """

    key: str
    part: str
    values: tuple[object, ...] = ()
    commands: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()

    def is_hit(self, value: object) -> bool:
        """True when the value asks for the missing part."""
        if self.values:
            return value in self.values
        return value != options()[self.key].default


def refuse_unavailable(config: RunConfig, command: str) -> None:
    """Raise ConfigError that lists every setting of this run whose part does not exist yet."""
    found = list(unavailable(config, command))
    if found:
        raise ConfigError("\n".join(found))


def unavailable(config: RunConfig, command: str) -> Iterator[str]:
    """Yield one sentence for every setting of this run whose part does not exist yet."""
    for gap in gaps():
        value = value_of(config, gap.key)
        concerned = not gap.commands or command in gap.commands
        if concerned and gap.stages:
            concerned = config.finetuning.stage in gap.stages
        if concerned and gap.is_hit(value):
            yield _sentence(gap, value, config.origins.get(gap.key), config.finetuning.stage)


@functools.cache
def gaps() -> tuple[Gap, ...]:
    """All missing parts."""
    text = Path(__file__).with_name("unavailable.yaml").read_text(encoding="utf-8")
    return tuple(_gap(entry) for entry in yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))  # noqa: S506


def _gap(entry: Mapping[str, object]) -> Gap:
    values, commands, stages = (entry.get(name, ()) for name in ("values", "commands", "stages"))
    assert isinstance(values, Sequence) and isinstance(commands, Sequence) and isinstance(stages, Sequence)
    return Gap(str(entry["key"]), str(entry["part"]), tuple(values), tuple(commands), tuple(stages))


def _sentence(gap: Gap, value: object, place: str | None, stage: str) -> str:
    where = f" at {place}" if place else ""
    got = repr(value) if isinstance(value, str) else show(value)
    missing = f"{gap.key}: {got}{where} is accepted, but this version cannot run {gap.part} yet"
    if gap.stages:
        return f"{missing} in stage {stage}; remove {gap.key}"
    if not gap.values:
        return f"{missing}; remove {gap.key}"
    available = [show(choice) for choice in options()[gap.key].choices if choice not in gap.values]
    return f"{missing}; available: {', '.join(available)}"
