"""What became of the rows: how many were kept, cut, dropped or bad, why, and which ones first.

Reports of parts add up, travel with the cache and end up in data_report.json. Knows no tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

from llamafactory.errors import DataError

REPORT_FILE = "data_report.json"
NO_SUPERVISION = "no supervised token is left"
TOO_LONG = "longer than cutoff_len"
EMPTY = "empty text"
_FIRST = 3
_BAD_SHOWN = 5
_BAD_KEPT = 100


@dataclass(slots=True)
class Reason:
    """Why rows were dropped: how many, and the names of the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, source: str) -> None:
        self.count += 1
        if len(self.first) < _FIRST:
            self.first.append(source)

    def merge(self, other: Reason) -> None:
        self.count += other.count
        self.first = (self.first + other.first)[:_FIRST]


@dataclass(slots=True)
class Report:
    """Counts of one data set or of a whole run. tokens and supervised count what was kept.

    notes: what is written or learnt in another way than the rows say, each with its rows.
    """

    read: int = 0
    kept: int = 0
    tokens: int = 0
    supervised: int = 0
    truncated: Reason = field(default_factory=Reason)
    dropped: dict[str, Reason] = field(default_factory=dict)
    num_bad: int = 0
    bad: list[str] = field(default_factory=list)
    notes: dict[str, Reason] = field(default_factory=dict)

    def drop(self, reason: str, source: str) -> None:
        self.dropped.setdefault(reason, Reason()).add(source)

    def note(self, text: str, source: str) -> None:
        self.notes.setdefault(text, Reason()).add(source)

    def reject(self, error: DataError) -> None:
        self.num_bad += 1
        if len(self.bad) < _BAD_KEPT:
            self.bad.append(str(error))

    def merge(self, other: Report) -> None:
        """Add the counts of `other`, in place."""
        self.read += other.read
        self.kept += other.kept
        self.tokens += other.tokens
        self.supervised += other.supervised
        self.truncated.merge(other.truncated)
        for reason, detail in other.dropped.items():
            self.dropped.setdefault(reason, Reason()).merge(detail)
        for text, detail in other.notes.items():
            self.notes.setdefault(text, Reason()).merge(detail)
        self.num_bad += other.num_bad
        self.bad = (self.bad + other.bad)[:_BAD_KEPT]

    @property
    def num_dropped(self) -> int:
        return sum(reason.count for reason in self.dropped.values())

    @property
    def supervised_ratio(self) -> float:
        return self.supervised / self.tokens if self.tokens else 0.0

    def raise_if_bad(self, name: str) -> None:
        """Raise DataError that quotes the first bad rows, if there are any."""
        if not self.num_bad:
            return
        more = f" (and {self.num_bad - _BAD_SHOWN} more)" if self.num_bad > _BAD_SHOWN else ""
        rows = "row" if self.num_bad == 1 else "rows"
        raise DataError(
            f"{name}: {self.num_bad} {rows} cannot be used: {' | '.join(self.bad[:_BAD_SHOWN])}{more}; "
            "`llamafactory-cli data check CONFIG` lists them all, on_bad_example: skip leaves them out"
        )

    def raise_if_empty(self, name: str) -> None:
        """Raise DataError with the reasons when nothing, or nothing to learn from, was kept."""
        if self.kept and self.supervised:
            return
        reasons = {**{reason: detail.count for reason, detail in self.dropped.items()}}
        if self.num_bad:
            reasons["bad row"] = self.num_bad
        told = ", ".join(f"{count} x {reason}" for reason, count in reasons.items()) or "the data set has no rows"
        first = next((detail.first[0] for detail in self.dropped.values() if detail.first), "")
        raise DataError(
            f"{name}: not one of {self.read} rows has a token to learn from "
            f"({told}{'; first: ' + first if first else ''}), "
            "so training would change nothing; raise cutoff_len, or look at the rows with `llamafactory-cli data "
            "preview CONFIG`"
        )

    def told(self, name: str) -> list[str]:
        """The notes as sentences, for notices."""
        rows = {text: f"{detail.count} rows" if detail.count > 1 else "1 row" for text, detail in self.notes.items()}
        return [f"{name}: {rows[text]} (first: {detail.first[0]}): {text}" for text, detail in self.notes.items()]

    def line(self) -> str:
        """One line for people."""
        parts = [f"{self.kept} of {self.read} rows kept"]
        if self.truncated.count:
            parts.append(f"{self.truncated.count} truncated (first: {', '.join(self.truncated.first)})")
        parts += [
            f"{detail.count} dropped: {why} (first: {', '.join(detail.first)})" for why, detail in self.dropped.items()
        ]
        if self.num_bad:
            parts.append(f"{self.num_bad} bad rows skipped")
        share = f", {100 * self.supervised_ratio:.0f} % supervised" if self.supervised else ""
        parts.append(f"{self.tokens} tokens{share}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Self:
        values = dict(data)
        values["truncated"] = Reason(**values["truncated"])  # type: ignore[arg-type]
        values["dropped"] = {why: Reason(**detail) for why, detail in values["dropped"].items()}  # type: ignore[attr-defined]
        values["notes"] = {text: Reason(**detail) for text, detail in values["notes"].items()}  # type: ignore[attr-defined]
        return cls(**values)  # type: ignore[arg-type]


def write_report(reports: Mapping[str, Report], folder: Path) -> Path:
    """Write the reports by data set name to data_report.json in `folder`; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / REPORT_FILE
    staged = path.with_name(f".{REPORT_FILE}.{os.getpid()}")
    text = json.dumps({name: report.to_json() for name, report in reports.items()}, ensure_ascii=False, indent=2)
    staged.write_text(text + "\n", encoding="utf-8")
    staged.replace(path)
    return path
