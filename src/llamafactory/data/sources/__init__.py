"""Where rows come from. One file per hub or store, found by name; each defines `load(entry, access) -> Rows`.

Rows carry their name ("file:row") from here on. Knows no format and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llamafactory.errors import DataError
from llamafactory.parts import Family

SOURCES = Family("dataset_info.json", "llamafactory.data.sources", ("load",))

Row = Mapping[str, object]
NamedRow = tuple[str, Row | DataError]
"""("file:row", the row, or why it could not be read). Rows count from 1."""


@dataclass(slots=True)
class Position:
    """How far a reader has come, in whatever unit it can count; total 0 means unknown."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class Access:
    """What a source may need to reach its data; tokens are empty when the user gave none."""

    dataset_dir: Path
    cache_dir: Path | None = None
    revision: str | None = None
    hf_token: str | None = None
    ms_token: str | None = None
    om_token: str | None = None
    streaming: bool = False


class Rows(Protocol):
    """The rows of one registry entry, readable any number of times."""

    def fingerprint(self) -> str:
        """Digest that changes whenever a row may have changed."""
        ...

    def read(self, part: int = 0, parts: int = 1, position: Position | None = None) -> Iterator[NamedRow]:
        """Yield the rows of one of `parts` disjoint parts; one part means all rows in file order."""
        ...
