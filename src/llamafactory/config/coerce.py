"""Giving a value the type its key asks for, and saying in one sentence when that is impossible.

Knows the plain types of `catalog.Option`; the exact limits are checked by the section models.
"""

from __future__ import annotations

from collections.abc import Mapping

from llamafactory.config.catalog import Option
from llamafactory.config.files import parse_flow
from llamafactory.config.given import Given
from llamafactory.config.suggest import nearest

_TRUE = {"true", "1", "yes", "on", "y", "t"}
_FALSE = {"false", "0", "no", "off", "n", "f"}
_NOTHING = {"null", "~", ""}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "words separated by commas",
    "dict": "a mapping or JSON text",
}


def coerce(given: Given, option: Option) -> object:
    """Return the value in the type the option asks for. Raises ValueError with "got ..., expected ..."."""
    value = _from_argument(given, option) if given.from_argument else _from_file(given, option)
    if value is None and not option.types & {"none", "list"}:
        raise ValueError(f"got nothing, {expected(option)}; write a value or remove the key")
    if isinstance(value, bool) and not option.types & {"bool", "str"}:
        raise ValueError(mismatch(value, option))
    value = _to_number(value, option)
    if isinstance(value, str) and option.choices and "str" in option.types and value not in option.choices:
        raise ValueError(mismatch(value, option))
    return _check_passed_on(value, option) if option.passed_on else value


def expected(option: Option) -> str:
    """Say which values the option takes, with limit and unit."""
    if option.choices:
        return "expected one of " + ", ".join(str(choice) for choice in option.choices) + _unit(option)
    names = [_WORDS[name] for name in _WORDS if name in option.types]
    limits = "".join(f" {sign} {value:g}" for sign, value in option.limits)
    return "expected " + " or ".join(names) + limits + _unit(option)


def mismatch(value: object, option: Option) -> str:
    """Say what was got and what was expected; a secret value is not shown."""
    got = "a hidden value" if option.secret else _show(value)
    near = nearest(str(value), map(str, option.choices)) if option.choices and not option.secret else None
    hint = f"; did you mean {near!r}?" if near else ""
    return f"got {got}, {expected(option)}{hint}"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unit(option: Option) -> str:
    return f" ({option.unit})" if option.unit else ""


def _takes_nothing(option: Option) -> bool:
    return "none" in option.types or option.default == ()


def _from_file(given: Given, option: Option) -> object:
    """Keep the typed value, but give text keys the text as written: `1.10` stays `1.10`, and `no` stays `no`."""
    value, text = given.value, given.text
    if value == "None" and _takes_nothing(option):
        return None
    if text is None or value is None or isinstance(value, str):
        return value
    return text if option.types <= {"str", "none", "list"} else value


def _from_argument(given: Given, option: Option) -> object:
    text = str(given.value).strip()
    word = text.lower()
    if _takes_nothing(option) and (word in _NOTHING or word == "none"):
        return None
    if ("dict" in option.types and text.startswith("{")) or ("list" in option.types and text.startswith("[")):
        return parse_flow(text)
    if "bool" in option.types:
        truths, untruths = ({"true"}, {"false"}) if "str" in option.types else (_TRUE, _FALSE)
        if word in truths | untruths:
            return word in truths
    return text


def _to_number(value: object, option: Option) -> object:
    """Turn text into a number where only a number will do; text that is none is left for the type check."""
    if not isinstance(value, str) or not option.types <= {"int", "float", "none"}:
        return value
    try:
        number = float(value.replace("_", ""))
    except ValueError:
        return value
    if "int" in option.types:
        return int(number) if number.is_integer() else number
    return number


def _check_passed_on(value: object, option: Option) -> object:
    """Check a key of transformers that no section model holds; a whole number is also a number."""
    if "list" in option.types and "str" not in option.types and isinstance(value, str):
        value = [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, str) and "dict" in option.types and value.startswith("{"):
        value = parse_flow(value)
    if isinstance(value, int) and not isinstance(value, bool) and option.types & {"float"}:
        return float(value) if "int" not in option.types else value
    names = {type(None): "none", bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
    if names.get(type(value)) not in option.types:
        raise ValueError(mismatch(value, option))
    return value
