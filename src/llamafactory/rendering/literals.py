"""Values as models write them inside calls: JSON, Python's spelling of it, and notations with quotes of their own.

One pass over the text, a limited depth, nothing is evaluated. Knows no tool format.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from llamafactory.rendering.calls import skip_blanks

T = TypeVar("T")
Reader = Callable[[str, int], tuple[T, int] | None]
"""Reads what begins at a place: the value and where it ends, or None."""

MAX_DEPTH = 100

_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_WORD = re.compile(r"[A-Za-z]+")
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_MARKS = {'"': re.compile(r'[\\"]'), "'": re.compile(r"[\\']")}
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\U00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\.", re.DOTALL)
_ESCAPED = {
    "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "0": "\0",
    "\\": "\\", "'": "'", '"': '"', "\n": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Notation:
    """How text and the keys of objects are written; lists, objects, numbers and words are the same in all."""

    text: Reader[str]
    key: Reader[str]


def read_items(text: str, start: int, closing: str, read: Reader[T]) -> tuple[list[T], int] | None:
    """Items between commas up to `closing`, blanks skipped; `start` is behind the opening bracket."""
    items: list[T] = []
    at = skip_blanks(text, start)
    if text.startswith(closing, at):
        return items, at + len(closing)
    while (found := read(text, at)) is not None:
        items.append(found[0])
        at = skip_blanks(text, found[1])
        if text.startswith(closing, at):
            return items, at + len(closing)
        if not text.startswith(",", at):
            return None
        at = skip_blanks(text, at + 1)
    return None


def read_quoted(text: str, start: int, ends: Callable[[str, int], bool] | None = None) -> tuple[str, int] | None:
    """Text in single or double quotes, escapes resolved. ends: tells by what follows a quote whether it closes."""
    mark = _MARKS.get(text[start : start + 1])
    if mark is None:
        return None
    at = start + 1
    while (found := mark.search(text, at)) is not None:
        at = found.end()
        if found.group() == "\\":
            at += 1
        elif ends is None or ends(text, at):
            return unescape(text[start + 1 : at - 1]), at
    return None


def unescape(text: str) -> str:
    """Resolve the escapes of JSON and Python; an unknown one stays as it is."""
    return _ESCAPE.sub(_resolve, text) if "\\" in text else text


def _resolve(found: re.Match[str]) -> str:
    escape = found.group()
    if len(escape) == 2:
        return _ESCAPED.get(escape[1], escape)
    if escape[1] == "u":
        return str(json.loads(f'"{escape}"'))
    return chr(int(escape[2:], 16))


PYTHON = Notation(read_quoted, read_quoted)
"""Python's literals as far as JSON has them, and JSON itself."""


def read_value(text: str, start: int, notation: Notation = PYTHON, depth: int = 0) -> tuple[object, int] | None:
    """The value that begins at `start`, blanks skipped, nested at most MAX_DEPTH deep."""
    at = skip_blanks(text, start)
    opening = text[at : at + 1]
    if opening not in ("[", "{"):
        return notation.text(text, at) or _read_word(text, at)
    if depth == MAX_DEPTH:
        return None
    inner = functools.partial(read_value, notation=notation, depth=depth + 1)
    if opening == "[":
        return read_items(text, at + 1, "]", inner)
    pairs = read_items(text, at + 1, "}", functools.partial(_read_pair, key=notation.key, value=inner))
    return None if pairs is None else (dict(pairs[0]), pairs[1])


def _read_pair(
    text: str, start: int, *, key: Reader[str], value: Reader[object]
) -> tuple[tuple[str, object], int] | None:
    name = key(text, start)
    colon = skip_blanks(text, name[1]) if name is not None else 0
    if name is None or not text.startswith(":", colon):
        return None
    found = value(text, colon + 1)
    return None if found is None else ((name[0], found[0]), found[1])


def _read_word(text: str, at: int) -> tuple[object, int] | None:
    number = _NUMBER.match(text, at)
    if number is not None:
        try:
            return (float if number[1] or number[2] else int)(number[0]), number.end()
        except ValueError:
            return None
    word = _WORD.match(text, at)
    return (_WORDS[word[0]], word.end()) if word is not None and word[0] in _WORDS else None


def json_or_text(text: str) -> object:
    """The JSON value that is all of `text`; the text itself when it is none, or a JSON string."""
    found = _read_json(text)
    return text if found is None or isinstance(found[0], str) else found[0]


def literal_or_text(text: str) -> object:
    """Like `json_or_text`, and reads what Python's `str()` makes of truth values, None, lists and dictionaries."""
    found = _read_json(text) or read_value(text, 0)
    whole = found is not None and not text[found[1] :].strip()
    return text if found is None or not whole or isinstance(found[0], str) else found[0]


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse)


def _read_json(text: str) -> tuple[object, int] | None:
    try:
        return _JSON.decode(text), len(text)
    except (ValueError, RecursionError):
        return None
