"""Every key of the surface: where it lives, which values it takes, who accepts it.

Built once from the section models and the table of transformers' arguments. Knows no file and no value.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, TypedDict, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from llamafactory.config.renamed import replaced_keys
from llamafactory.config.run import section_types
from llamafactory.config.section import TRAIN, Section

ALSO_ACCEPTED_BY = {"seed": ("eval",)}
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_NAMES = {bool: "bool", int: "int", float: "float", str: "str", NoneType: "none", tuple: "list", list: "list"}


@dataclass(frozen=True)
class Option:
    """One key: its section, the plain types, choices and limits of its value, default, doc, unit, secrecy and commands.

    types: subset of bool, int, float, str, list, dict, none. limits: pairs such as (">=", 0). passed_on: a transformers
    key no field of ours holds.
    """

    key: str
    section: str
    types: frozenset[str]
    choices: tuple[object, ...]
    default: object
    doc: str
    unit: str
    secret: bool
    commands: tuple[str, ...]
    limits: tuple[tuple[str, float], ...] = ()
    passed_on: bool = False

    @property
    def is_flag(self) -> bool:
        """True when `--key` alone means true."""
        return "bool" in self.types


class HfArgument(TypedDict):
    """One training argument of transformers, as generated."""

    types: list[str]
    choices: list[str]
    default: object
    doc: str


@functools.cache
def hf_arguments() -> Mapping[str, HfArgument]:
    """The table of transformers' training arguments: name -> types, choices, default, doc."""
    path = Path(__file__).with_name("hf_arguments.json")
    return json.loads(path.read_text(encoding="utf-8"))["arguments"]


@functools.cache
def options() -> Mapping[str, Option]:
    """All keys by name, in reading order: our own first, then those handed on to transformers."""
    found = {
        name: _from_field(name, info, attribute, section)
        for attribute, section in section_types().items()
        for name, info in section.model_fields.items()
        if name != "extra"
    }
    for name, entry in hf_arguments().items():
        if name not in found and name not in replaced_keys():
            found[name] = _from_table(name, entry)
    return found


def options_of(command: str) -> dict[str, Option]:
    """Keys that `command` accepts."""
    return {key: option for key, option in options().items() if command in option.commands}


def _from_field(name: str, info: FieldInfo, attribute: str, section: type[Section]) -> Option:
    meta = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    types, choices, limits = _values(info.annotation)
    foreign = hf_arguments().get(name) if attribute == "training" else None
    if foreign is not None:
        types = types | ({"bool"} & set(foreign["types"]))
        choices = choices or tuple(foreign["choices"])
    return Option(
        key=name,
        section=attribute,
        types=frozenset(types),
        choices=choices,
        default=info.default,
        doc=info.description or "",
        unit=str(meta.get("unit", "")),
        secret=bool(meta.get("secret", False)),
        commands=(*section.commands, *ALSO_ACCEPTED_BY.get(name, ())),
        limits=(*_limits(info.metadata), *limits),
    )


def _from_table(name: str, entry: HfArgument) -> Option:
    return Option(
        key=name,
        section="training",
        types=frozenset(entry["types"]),
        choices=tuple(entry["choices"]),
        default=entry["default"],
        doc=entry["doc"],
        unit="",
        secret=name.endswith("token"),
        commands=TRAIN,
        passed_on=True,
    )


def _values(hint: object) -> tuple[set[str], tuple[object, ...], tuple[tuple[str, float], ...]]:
    """Plain type names, literal choices and limits that an annotation allows."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *notes = get_args(hint)
        types, choices, limits = _values(inner)
        return types, choices, (*limits, *_limits(notes))
    if origin in {Union, UnionType}:
        parts = [_values(item) for item in get_args(hint)]
        types = set().union(*(part[0] for part in parts))
        return (
            types,
            tuple(item for part in parts for item in part[1]),
            tuple(item for part in parts for item in part[2]),
        )
    if origin is Literal:
        return {_NAMES[type(value)] for value in get_args(hint)}, get_args(hint), ()
    plain = origin or hint
    if isinstance(plain, type):
        return ({_NAMES[plain]} if plain in _NAMES else {"dict"}), (), ()
    raise TypeError(f"no plain type for {hint!r}")


def _limits(notes: Iterable[object]) -> tuple[tuple[str, float], ...]:
    """Limits among the notes of an annotation: objects with gt, ge, lt or le, alone or inside a Field."""
    found: list[tuple[str, float]] = []
    for note in notes:
        if isinstance(note, FieldInfo):
            found.extend(_limits(note.metadata))
        found.extend((sign, getattr(note, name)) for name, sign in SIGNS.items() if hasattr(note, name))
    return tuple(found)
