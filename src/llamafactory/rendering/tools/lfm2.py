"""Tool format of LFM2: a list of Python-like calls between control tokens, values as JSON.

Text is written between double quotes as it is, unless that would hide where it ends (see `needs_escape`). JSON and
Python values are read, both kinds of quotes, and text whose inner quotes nobody escaped. A key that is no word cannot
be read back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, begins, dump, skip_blanks, unwrap
from llamafactory.rendering.literals import read_items, read_quoted, read_value
from llamafactory.rendering.markup import BARE_JINJA, CALL_JINJA, Fragments, Markup, join_fragments, quote
from llamafactory.rendering.tagged_calls import OBJECT_JINJA

HEAD, TAIL = "List of tools: <|tool_list_start|>[", "]<|tool_list_end|>"
OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"
STARTS = Starts(anywhere=(OPEN,), answer=("[",))

_NAME = re.compile(r"[^\W\d][\w.\-]*")

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- " + BARE_JINJA
    + " | tojson -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}{%- endfor -%}{{- " + quote(TAIL) + " -}}"
)  # fmt: skip
_PLAIN_JINJA = (
    "value is string and '\\\\' not in value and ('\"' not in value or (',' not in value and ')' not in value))"
)
CALLS_JINJA = (
    "{{- " + quote(f"{OPEN}[") + " -}}" + CALL_JINJA + OBJECT_JINJA
    + "{{- ('' if loop.first else ', ') ~ call.name ~ '(' -}}"
    "{%- for name in (call.arguments or {}) -%}{%- set value = call.arguments[name] -%}"
    "{{- ('' if loop.first else ', ') ~ name ~ '=' ~ ('\"' ~ value ~ '\"' if " + _PLAIN_JINJA
    + " else value | tojson) -}}{%- endfor -%}{{- ')' -}}{%- endfor -%}{{- " + quote(f"]{CLOSE}") + " -}}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """A JSON list of bare schemas."""
    return [Markup(HEAD), ", ".join(dump(unwrap(tool)) for tool in tools), Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """One list of all calls."""
    return [Markup(f"{OPEN}["), *join_fragments((_write(call) for call in calls), ", "), Markup(f"]{CLOSE}")]


def _write(call: ToolCall) -> Fragments:
    return [f"{call.name}({', '.join(f'{key}={_value(value)}' for key, value in call.arguments.items())})"]


def _value(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) and not needs_escape(value) else dump(value)


def needs_escape(text: str) -> bool:
    """Whether text would be misread between quotes: it holds a backslash, or quotes beside a comma or a bracket."""
    return "\\" in text or ('"' in text and ("," in text or ")" in text))


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every list between control tokens, or a list that is all of the answer."""
    calls: list[ToolCall] = []
    start = text.find(OPEN)
    if start < 0:
        found = _read_list(text, 0)
        return found[0] or None if found is not None and not text[found[1] :].strip() else None
    while start >= 0:
        found = _read_list(text, start + len(OPEN))
        if found is None or not begins(text, found[1], CLOSE):
            return None
        calls += found[0]
        start = text.find(OPEN, found[1])
    return calls or None


def _read_list(text: str, start: int) -> tuple[list[ToolCall], int] | None:
    at = skip_blanks(text, start)
    return read_items(text, at + 1, "]", _read_call) if text.startswith("[", at) else None


def _read_call(text: str, at: int) -> tuple[ToolCall, int] | None:
    name = _NAME.match(text, at)
    if name is None or not text.startswith("(", name.end()):
        return None
    found = read_items(text, name.end() + 1, ")", _read_argument)
    return None if found is None else (ToolCall(name[0], dict(found[0])), found[1])


def _read_argument(text: str, at: int) -> tuple[tuple[str, object], int] | None:
    key = _NAME.match(text, at)
    if key is None or not begins(text, key.end(), "="):
        return None
    at = skip_blanks(text, skip_blanks(text, key.end()) + 1)
    found = read_quoted(text, at, _argument_ends) or read_value(text, at)
    return None if found is None else ((key[0], found[0]), found[1])


def _argument_ends(text: str, at: int) -> bool:
    """Whether a quote before `at` closes an argument: another argument or the end of the call follows."""
    return text.startswith((",", ")"), skip_blanks(text, at))
