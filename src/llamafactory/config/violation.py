"""One broken rule, and the words to tell it with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llamafactory.config.catalog import options
from llamafactory.config.run import RunConfig, plain


@dataclass(frozen=True)
class Violation:
    """Settings that cannot be honoured: the keys involved (the first one to be changed), why, and the cure."""

    keys: tuple[str, ...]
    why: str
    fix: str

    def sentence(self, config: RunConfig) -> str:
        """Where, got, why and fix in one line."""
        place = next((config.origins[key] for key in self.keys if key in config.origins), None)
        return f"{place or str(config.source_file or 'options')}: {self.words(config)}"

    def words(self, config: RunConfig) -> str:
        """Got, why and fix."""
        got = " with ".join(f"{key}: {show(value_of(config, key))}" for key in self.keys)
        return f"{got}: {self.why}; {self.fix}"


Rule = Callable[[RunConfig], Iterator[Violation]]


def value_of(config: RunConfig, key: str) -> object:
    """The resolved value of a key, also of one that is only handed on to transformers."""
    option = options()[key]
    if option.passed_on:
        return config.training.extra.get(key, option.default)
    return getattr(getattr(config, option.section), key)


def show(value: object) -> str:
    """A value as it is written in YAML, without secrets; absent and empty values in words."""
    if value is None or value == ():
        return "(not set)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(str(item) for item in value)
    if isinstance(value, Mapping):
        return json.dumps(plain(value, redact=True))
    return f"{value:g}" if isinstance(value, float) else str(value)
