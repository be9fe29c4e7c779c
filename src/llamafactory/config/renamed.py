"""Translating old and renamed keys by one table, `renamed.yaml`.

Knows the table's few verbs; the names themselves are data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from llamafactory.config.files import parse_flow
from llamafactory.config.given import Given

_TRUE = {"true", "1", "yes", "on", "y", "t"}
_FALSE = {"false", "0", "no", "off", "n", "f"}


@dataclass(frozen=True)
class Translation:
    """What became of one given value: the values it means now, the words for the notice, or the problem."""

    given: tuple[Given, ...]
    note: str = ""
    problem: str = ""


@functools.cache
def _table() -> Mapping[str, Mapping[str, object]]:
    text = Path(__file__).with_name("renamed.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506


def renamed_keys() -> Mapping[str, Mapping[str, object]]:
    """Rules by old key; a current key stands here when one of its values is old."""
    return _table()["keys"]  # type: ignore[return-value]


def replaced_keys() -> set[str]:
    """Keys that mean something else now, whatever their value: nothing reads them under their own name."""
    return {key for key, rule in renamed_keys().items() if rule.keys() & {"to", "invert", "drop", "else"}}


def meant_keys() -> Mapping[str, str]:
    """Words people try -> the key they mean."""
    return _table()["meant"]  # type: ignore[return-value]


def translate(item: Given, current: Container[str]) -> Translation:
    """Translate one value; a value the table does not know passes unchanged and without a note.

    current: the keys of today, whose other values are left alone.
    """
    rule = renamed_keys().get(item.key)
    if rule is None:
        return Translation((item,))
    if "drop" in rule:
        return Translation((), note=f"{item.key} has no effect: {rule['drop']}")
    if "to" in rule:
        return _rename(item, rule)
    if "invert" in rule:
        return _invert(item, str(rule["invert"]))
    return _by_value(item, rule, current)


def _rename(item: Given, rule: Mapping[str, object]) -> Translation:
    new = str(rule["to"])
    limit = rule.get("below")
    if isinstance(limit, int) and _number(item) >= limit:
        return Translation(
            (),
            problem=f"{item.place}: {item.key}: got {_word(item)}, expected a share below {limit}; {new} takes counts",
        )
    return Translation((dataclasses.replace(item, key=new),), note=f"{item.key} is now {new}")


def _invert(item: Given, new: str) -> Translation:
    word = _word(item)
    if word in {"null", "none"}:
        return Translation(())
    if word not in _TRUE | _FALSE:
        return Translation((), problem=f"{item.place}: {item.key}: got {word!r}, expected true or false; use {new}")
    value = word in _FALSE
    replaced = Given(new, value, str(value).lower(), item.place, from_argument=False)
    return Translation((replaced,), note=f"{item.key}: {word} is now {new}: {str(value).lower()}")


def _by_value(item: Given, rule: Mapping[str, object], current: Container[str]) -> Translation:
    values = rule["values"]
    assert isinstance(values, Mapping)
    meaning = values.get(_word(item))
    if meaning is None:
        if "else" not in rule and item.key in current:
            return Translation((item,))
        advice = rule.get("else", f"known values are {', '.join(values)}")
        return Translation((), problem=f"{item.place}: {item.key}: {_word(item)!r} is not possible any more; {advice}")
    new = tuple(Given(key, value, None, item.place, from_argument=False) for key, value in meaning.items())
    words = ", ".join(f"{key}: {_show(value)}" for key, value in meaning.items())
    then = f"is now {words}" if words else "is what happens anyway"
    return Translation(new, note=f"{item.key}: {_word(item)} {then}")


def _word(item: Given) -> str:
    """The value as lower-case text; booleans and nothing as YAML writes them."""
    if item.value is None:
        return "null"
    if isinstance(item.value, str) and item.value.startswith("{"):
        return str(parse_flow(item.value)).lower()
    return str(item.value if item.text is None or isinstance(item.value, bool) else item.text).strip().lower()


def _show(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(item: Given) -> float:
    try:
        return float(str(item.value))
    except ValueError:
        return 0.0
