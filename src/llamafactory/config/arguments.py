"""Reading command-line words into `Given` values: `file.yaml key=value --key value --key=value --flag --no_flag`.

Knows which keys are flags and lists; checks no value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llamafactory.config.catalog import options
from llamafactory.config.files import SUFFIXES
from llamafactory.config.given import Given
from llamafactory.config.renamed import renamed_keys

_BOOLEANS = {"true", "false", "1", "0", "yes", "no", "on", "off", "y", "n", "t", "f"}


_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*$")


def split_arguments(words: Sequence[str]) -> tuple[Path | None, list[Given], list[str]]:
    """Return the file or run folder that is named, the values given on the line in order, and the faults found."""
    rest = list(words)
    source: Path | None = None
    given: list[Given] = []
    faults: list[str] = []
    while rest:
        word = rest.pop(0)
        key, sign, value = word.partition("=")
        try:
            if word.startswith("--") and len(word) > 2:
                given.append(_read_option(word[2:], rest))
            elif sign and _KEY.match(key):
                given.append(_argument(key, value))
            elif source is None:
                source = Path(word)
            else:
                faults.append(
                    f"argument {word!r}: is neither key=value nor --key value, and the file {source} was given before"
                )
        except _NoValueError as error:
            faults.append(str(error))
    return source, given, faults


class _NoValueError(Exception):
    """A key at the end of the line, or before another key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"argument '--{key}': has no value; write --{key} VALUE or {key}=VALUE")


def _read_option(name: str, rest: list[str]) -> Given:
    key, sign, value = name.partition("=")
    if sign:
        return _argument(key, value)
    key = _normal(key)
    option = options().get(key)
    if option is None and key not in renamed_keys() and key.startswith("no_"):
        positive = options().get(key.removeprefix("no_"))
        if positive is not None and positive.is_flag:
            return _argument(positive.key, "false")
    if option is not None and "list" in option.types:
        return _argument(key, ",".join(_take_while_plain(key, rest)))
    if option is not None and option.is_flag and not _next_is_value(rest, boolean="str" not in option.types):
        return _argument(key, "true")
    if rest and not rest[0].startswith("--") and (option is not None or _next_is_value(rest, boolean=False)):
        return _argument(key, rest.pop(0))
    if option is None:
        return _argument(key, "true")
    raise _NoValueError(key)


def _next_is_value(rest: list[str], *, boolean: bool) -> bool:
    if not rest or rest[0].startswith("--"):
        return False
    if boolean:
        return rest[0].lower() in _BOOLEANS
    return "=" not in rest[0] and not rest[0].lower().endswith(SUFFIXES)


def _take_while_plain(key: str, rest: list[str]) -> list[str]:
    taken = []
    while _next_is_value(rest, boolean=False):
        taken.append(rest.pop(0))
    if not taken:
        raise _NoValueError(key)
    return taken


def _argument(key: str, value: str) -> Given:
    name, *path = key.lstrip("-").split(".")
    name = _normal(name)
    return Given(name, value, value, f"argument '{name}'", from_argument=True, path=tuple(path))


def _normal(key: str) -> str:
    return key.replace("-", "_")
