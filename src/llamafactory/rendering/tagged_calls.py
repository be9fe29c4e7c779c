"""Calls whose arguments each stand between tags: writing them, reading them, and the Jinja that writes them.

Text is written as it is and other values as JSON, so on reading, text that spells a JSON value becomes that value,
unless the tools are known and declare a text (see `declared_types.py`). A value ends at the first closing tag that
another tag of the call follows, so it may hold the format's own tags, though not such a pair. Knows no format's tags
(see `tools/`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llamafactory.rendering.calls import Schema, ToolCall, dump, skip_blanks
from llamafactory.rendering.declared_types import Parameters, fit, parameters_of
from llamafactory.rendering.literals import json_or_text
from llamafactory.rendering.markup import CALL_JINJA, Fragments, Markup, quote

_NAME = re.compile(r'[^\s<>"{}]+')
_KEY = re.compile(r'[^<>"\n]+')


@dataclass(frozen=True, slots=True)
class Tags:
    """What surrounds the parts of a call.

    name, key, value: before and behind the function's name, an argument's name and its value; line breaks in `value`
    are written, and on reading one at either end is dropped if the closing tag is written on a line of its own.
    end: behind the last argument. read: a value from its text.
    """

    name: tuple[str, str]
    key: tuple[str, str]
    value: tuple[str, str]
    end: str
    read: Callable[[str], object] = json_or_text


def write_call(call: ToolCall, tags: Tags) -> Fragments:
    """A call with one line break behind its name and behind each argument."""
    fragments: Fragments = [Markup(tags.name[0]), call.name, Markup(tags.name[1] + "\n")]
    for key, value in call.arguments.items():
        text = value if isinstance(value, str) else dump(value)
        fragments += [Markup(tags.key[0]), key, Markup(tags.key[1] + tags.value[0]), text, Markup(tags.value[1] + "\n")]
    return [*(fragment for fragment in fragments if fragment), Markup(tags.end)]


def read_calls(text: str, block: tuple[str, str], tags: Tags, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """The calls of every block, one or more in each; None when there is none or one of them is broken."""
    calls = []
    declared = parameters_of(tools)
    start = text.find(block[0])
    while start >= 0:
        at = start + len(block[0])
        while True:
            found = _read_call(text, at, tags, declared)
            if found is None:
                return None
            calls.append(found[0])
            at = skip_blanks(text, found[1])
            if text.startswith(block[1], at):
                break
        start = text.find(block[0], at)
    return calls or None


def _read_call(text: str, start: int, tags: Tags, declared: Mapping[str, Parameters]) -> tuple[ToolCall, int] | None:
    opening, closing = tags.name
    at = skip_blanks(text, start)
    name = _NAME.match(text, at + len(opening)) if text.startswith(opening, at) else None
    if name is None or not text.startswith(closing, name.end()):
        return None
    arguments: dict[str, object] = {}
    parameters = declared.get(name[0], {})
    at = skip_blanks(text, name.end() + len(closing))
    while not text.startswith(tags.end, at):
        found = _read_argument(text, at, tags)
        if found is None:
            return None
        key, value, at = found
        arguments[key] = fit(value, tags.read(value), parameters.get(key))
    return ToolCall(name[0], arguments), at + len(tags.end)


def _read_argument(text: str, start: int, tags: Tags) -> tuple[str, str, int] | None:
    """An argument's name, the text of its value, and where the tag that follows begins."""
    key = _KEY.match(text, start + len(tags.key[0])) if text.startswith(tags.key[0], start) else None
    if key is None or not text.startswith(tags.key[1], key.end()):
        return None
    opening, closing = (tag.strip() for tag in tags.value)
    at = key.end() + len(tags.key[1])
    if opening:
        at = skip_blanks(text, at)
        if not text.startswith(opening, at):
            return None
        at += len(opening)
    end = text.find(closing, at)
    while end >= 0:
        following = skip_blanks(text, end + len(closing))
        if text.startswith((tags.key[0], tags.end), following):
            return key[0], _inside(text[at:end], tags), following
        end = text.find(closing, end + len(closing))
    return None


def _inside(text: str, tags: Tags) -> str:
    """A value without the line breaks that belong to its tags."""
    return text.removeprefix("\n").removesuffix("\n") if tags.value[1].startswith("\n") else text


def calls_jinja(tags: Tags, before: str, behind: str) -> str:
    """Jinja of a loop over calls. before, behind: text around each, joined by one line break."""
    value = "(value if value is string else value | tojson)"
    written = f"{quote(tags.key[0])} ~ name ~ {quote(tags.key[1] + tags.value[0])} ~ {value} ~ "
    return (
        CALL_JINJA + OBJECT_JINJA + "{{- '' if loop.first else '\\n' -}}"
        "{{- " + quote(before + tags.name[0]) + " ~ call.name ~ " + quote(tags.name[1] + "\n") + " -}}"
        "{%- for name in (call.arguments or {}) -%}{%- set value = call.arguments[name] -%}"
        "{{- " + written + quote(tags.value[1] + "\n") + " -}}{%- endfor -%}"
        "{{- " + quote(tags.end + behind) + " -}}{%- endfor -%}"
    )  # fmt: skip


OBJECT_JINJA = (
    "{%- if call.arguments is string -%}"
    "{{- raise_exception('The arguments of a tool call must be an object, not its JSON text.') -}}{%- endif -%}"
)
"""Refuses a call whose arguments are JSON text, which Jinja cannot take apart."""
