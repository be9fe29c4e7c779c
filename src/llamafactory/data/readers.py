"""Readers of single files: json, jsonl, csv, parquet, arrow and txt -> named rows, one at a time.

Every row keeps its number, so that any later complaint can name file and row. Knows no registry and no format.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

from llamafactory.data.sources import NamedRow, Position
from llamafactory.errors import DataError

_CHUNK = 1 << 20
_SPACE = " \t\r\n"

Reader = Callable[[Path, str, Position, "Share"], Iterator[NamedRow]]


class Share(NamedTuple):
    """Every `parts`-th row, beginning with row `part` (from 0)."""

    part: int = 0
    parts: int = 1

    def has(self, number: int) -> bool:
        """True when row `number` (from 1) belongs to this share."""
        return (number - 1) % self.parts == self.part


def read_file(path: Path, name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    """Yield the rows of `path` that belong to `share`; `name` stands for it in row names. Moves `position` by bytes."""
    start = position.done
    try:
        yield from READERS[path.suffix.lower()](path, name, position, share)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: byte {error.start} is not UTF-8 text ({error.reason}), only UTF-8 files can be read; "
            "save the file with UTF-8 encoding"
        ) from error
    position.done = start + path.stat().st_size


def _read_json(path: Path, name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from read_json_file(file, name, position, share)


def read_json_file(file: IO[str], name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    """Yield the rows of an open json or jsonl file; `name` tells which of both by its ending."""
    head = _first_character(file)
    file.seek(0)
    reader = _read_array if head == "[" else _read_lines if name.lower().endswith(".jsonl") else _read_objects
    yield from reader(file, name, _tracker(file, position), share)


def _read_lines(file: IO[str], name: str, track: Callable[[], None], share: Share) -> Iterator[NamedRow]:
    """One JSON value per line; a broken line is reported by its number and the next one is read."""
    for number, line in enumerate(file, 1):
        if number % 256 == 0:
            track()
        if not share.has(number) or not line.strip():
            continue
        source = f"{name}:{number}"
        try:
            yield source, _as_row(json.loads(line), source)
        except json.JSONDecodeError as error:
            yield (
                source,
                DataError(
                    f"{source}: the line is not valid JSON ({error.msg} at column {error.colno}), expected one JSON "
                    "object "
                    f"per line, found {line.strip()[:40]!r}; repair or remove the line"
                ),
            )


def _read_array(file: IO[str], name: str, track: Callable[[], None], share: Share) -> Iterator[NamedRow]:
    """A JSON array, decoded element by element, so that memory does not grow with the file."""
    values = _Values(file, name, track)
    values.skip("[")
    for number, value in enumerate(values.until("]"), 1):
        if share.has(number):
            source = f"{name}:{number}"
            yield source, _as_row(value, source)


def _read_objects(file: IO[str], name: str, track: Callable[[], None], share: Share) -> Iterator[NamedRow]:
    """JSON objects one after another, each over one or several lines."""
    for number, value in enumerate(_Values(file, name, track).until(""), 1):
        if share.has(number):
            source = f"{name}:{number}"
            yield source, _as_row(value, source)


class _Values:
    """Decodes JSON values from a growing window over a text file."""

    def __init__(self, file: IO[str], name: str, track: Callable[[], None]) -> None:
        self._file = file
        self._name = name
        self._track = track
        self._decode = json.JSONDecoder().raw_decode
        self._text = file.read(_CHUNK)
        self._at = 0
        self._count = 0

    def skip(self, opening: str) -> None:
        """Move behind `opening`, which the caller has seen in the file."""
        while opening not in self._text:
            self._text += self._file.read(_CHUNK)
        self._at = self._text.index(opening) + 1

    def until(self, closing: str) -> Iterator[object]:
        """Yield values separated by white space and commas up to `closing` (the end of the file when empty)."""
        while True:
            if not self._to_value():
                if closing:
                    raise self._broken(f"the file ends without {closing!r}")
                return
            if closing and self._text[self._at] == closing:
                return
            yield self._value()
            self._count += 1

    def _to_value(self) -> bool:
        """Move to the next character that is neither space nor comma; False at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in ", \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return True
            if not self._more():
                return False

    def _value(self) -> object:
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._more():
                    raise self._broken(error.msg) from error
                continue
            if end == len(self._text) and self._more():
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Drop what is decoded and read at least as much again as is left, so that rereading stays linear."""
        left = self._text[self._at :]
        new = self._file.read(max(_CHUNK, len(left)))
        self._text, self._at = left + new, 0
        self._track()
        return bool(new)

    def _broken(self, why: str) -> DataError:
        return DataError(
            f"{self._name}:{self._count + 1}: not valid JSON ({why}), expected a JSON object, found "
            f"{self._text[self._at : self._at + 40]!r}; repair the file (the rows before this one are fine)"
        )


def _as_row(value: object, source: str) -> Mapping[str, object] | DataError:
    if isinstance(value, dict):
        return value
    return DataError(
        f"{source}: the row is a JSON {type(value).__name__}, expected an object with named fields, found "
        f"{str(value)[:40]!r}; write every row as an object"
    )


def _read_csv(path: Path, name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        track = _tracker(file, position)
        for number, row in enumerate(csv.DictReader(file), 1):
            if not share.has(number):
                continue
            source = f"{name}:{number}"
            if None in row:
                yield (
                    source,
                    DataError(
                        f"{source}: the row has more fields than the header line has names, found {row[None]!r} too "
                        "many; quote fields that hold commas"
                    ),
                )
                continue
            if number % 256 == 0:
                track()
            yield source, row


def _read_parquet(path: Path, name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _number((batch.to_pylist() for batch in file.iter_batches(batch_size=1024)), name, share)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{name}: not a readable Parquet file ({error}); write it again or correct its ending"
        ) from error


def _read_arrow(path: Path, name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as data:
        try:
            batches = pa.ipc.open_stream(data)
        except pa.ArrowInvalid:
            data.seek(0)
            try:
                file = pa.ipc.open_file(data)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{name}: neither an Arrow stream nor an Arrow file ({error}); write it again or correct its ending"
                ) from error
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        yield from _number((batch.to_pylist() for batch in batches), name, share)


def _number(batches: Iterator[list[dict[str, object]]], name: str, share: Share) -> Iterator[NamedRow]:
    number = 0
    for batch in batches:
        for row in batch:
            number += 1
            if share.has(number):
                yield f"{name}:{number}", row


def _read_text(path: Path, name: str, position: Position, share: Share) -> Iterator[NamedRow]:
    with path.open(encoding="utf-8-sig") as file:
        track = _tracker(file, position)
        for number, line in enumerate(file, 1):
            if number == 1:
                _refuse_json(path, line, name)
            if number % 256 == 0:
                track()
            if share.has(number):
                yield f"{name}:{number}", {"text": line.rstrip("\n")}


def _refuse_json(path: Path, first_line: str, name: str) -> None:
    """Raise DataError when a .txt file holds JSON: as text, its braces and keys would be trained on."""
    line = first_line.strip()
    if line[:1] not in {"{", "["}:
        return
    ending = ".json" if line in {"{", "[", "[{"} else ""
    with suppress(json.JSONDecodeError):
        value = json.loads(line)
        ending = ".jsonl" if isinstance(value, dict) else ".json" if value and isinstance(value[0], dict) else ""
    if ending:
        raise DataError(
            f"{name}: a .txt file is read as plain text, one document per line, but this one holds JSON "
            f"({line[:40]!r}); rename it to {path.stem}{ending} and correct file_name"
        )


def _tracker(file: IO[str], position: Position) -> Callable[[], None]:
    """A function that sets `position.done` to the bytes read so far."""
    start = position.done
    raw = file.buffer  # type: ignore[attr-defined]

    def track() -> None:
        position.done = start + raw.tell()

    return track


def _first_character(file: IO[str]) -> str:
    while piece := file.read(4096):
        if stripped := piece.strip(_SPACE):
            return stripped[0]
    return ""


READERS: Mapping[str, Reader] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_text,
}
