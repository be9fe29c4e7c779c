"""Tool format of Gemma 4: JSON without quotes around keys and with `<|"|>` around text; keys of arguments are sorted.

Types are written in capitals. Text that holds `<|"|>` cannot be read back, nor can keys with one of `:{},<` in them or
blanks around them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, between, dump, name_of, skip_blanks, unwrap
from llamafactory.rendering.literals import Notation, read_value
from llamafactory.rendering.markup import BARE_JINJA, CALL_JINJA, Fragments, Markup, join_fragments, quote
from llamafactory.rendering.tagged_calls import OBJECT_JINJA

QUOTE = '<|"|>'
OPEN, CLOSE = "<|tool_call>", "<tool_call|>"
STARTS = Starts(anywhere=(OPEN,))

_CALL = re.compile(r"call:([^\s:{}<]+)")
_KEY = re.compile(r"[^:{},<]+")

_COMMA_JINJA = "{{- ',' if not loop.first else '' -}}"
_QUOTED_JINJA = "{{{{- " + quote(QUOTE) + " ~ {} ~ " + quote(QUOTE) + " -}}}}"
_TYPE_JINJA = (
    "{%- macro write_type(type) -%}{%- if type is string -%}" + _QUOTED_JINJA.format("type | upper") + "{%- else -%}"
    "{{- '[' -}}{%- for item in type -%}" + _COMMA_JINJA + _QUOTED_JINJA.format("item | upper") + "{%- endfor -%}"
    "{{- ']' -}}{%- endif -%}{%- endmacro -%}"
)  # fmt: skip
_OBJECT_JINJA = (
    "{%- macro write_object(schema) -%}"
    "{%- if schema.properties -%}{{- 'properties:{' -}}"
    "{%- for name in schema.properties -%}{%- set value = schema.properties[name] -%}"
    + _COMMA_JINJA + "{{- name ~ ':{' -}}{%- if value.description -%}{{- 'description:' -}}"
    + _QUOTED_JINJA.format("value.description") + "{{- ',' -}}{%- endif -%}"
    "{%- if value.nullable -%}{{- 'nullable:true,' -}}{%- endif -%}"
    "{{- write_object(value) ~ '}' -}}{%- endfor -%}{{- '},' -}}{%- endif -%}"
    "{%- if schema.required -%}{{- 'required:[' -}}{%- for item in schema.required -%}"
    + _COMMA_JINJA + _QUOTED_JINJA.format("item") + "{%- endfor -%}{{- '],' -}}{%- endif -%}"
    "{{- 'type:' ~ write_type(schema.type or ('object' if schema.properties else '')) -}}{%- endmacro -%}"
)  # fmt: skip
TOOLS_JINJA = (
    _TYPE_JINJA + _OBJECT_JINJA + "{%- for tool in tools -%}{%- set schema = " + BARE_JINJA + " -%}"
    "{{- ('' if loop.first else '\\n') ~ 'declaration:' ~ schema.name ~ '{description:' -}}"
    + _QUOTED_JINJA.format("(schema.description or '')") +
    "{%- if schema.parameters -%}{{- ',parameters:{' ~ write_object(schema.parameters) ~ '}' -}}{%- endif -%}"
    "{{- '}' -}}{%- endfor -%}"
)  # fmt: skip
_VALUE_JINJA = (
    "{%- macro write_value(value) -%}"
    "{%- if value is string -%}" + _QUOTED_JINJA.format("value") +
    "{%- elif value is mapping -%}{{- '{' -}}{%- for pair in value | dictsort -%}"
    + _COMMA_JINJA + "{{- pair[0] ~ ':' ~ write_value(pair[1]) -}}{%- endfor -%}{{- '}' -}}"
    "{%- elif value is iterable -%}{{- '[' -}}{%- for item in value -%}"
    + _COMMA_JINJA + "{{- write_value(item) -}}{%- endfor -%}{{- ']' -}}"
    "{%- else -%}{{- value | tojson -}}{%- endif -%}{%- endmacro -%}"
)  # fmt: skip
CALLS_JINJA = (
    _VALUE_JINJA + CALL_JINJA + OBJECT_JINJA + "{{- " + quote(f"{OPEN}call:")
    + " ~ call.name ~ write_value(call.arguments or {}) ~ " + quote(CLOSE) + " -}}{%- endfor -%}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """A declaration of each tool on a line."""
    return join_fragments(map(_declare, tools), "\n")


def _declare(tool: Schema) -> Fragments:
    schema = unwrap(tool)
    fragments = [Markup("declaration:"), name_of(tool), Markup("{description:"), *_text(schema.get("description", ""))]
    parameters = schema.get("parameters")
    if isinstance(parameters, Mapping) and parameters:
        fragments += [Markup(",parameters:{"), *_describe(parameters), Markup("}")]
    return [*fragments, Markup("}")]


def _describe(schema: Mapping[str, object]) -> Fragments:
    """Properties, required names and type of an object's schema, or the type of a plain one."""
    parts: list[Fragments] = []
    properties, required = schema.get("properties"), schema.get("required")
    kind = schema.get("type") or ("object" if properties else "")
    if isinstance(properties, Mapping) and properties:
        inside = join_fragments(itertools.starmap(_property, properties.items()), ",")
        parts.append([Markup("properties:{"), *inside, Markup("}")])
    if isinstance(required, Sequence) and required:
        parts.append([Markup("required:"), *_list(_text(name) for name in required)])
    kinds = _text(kind.upper()) if isinstance(kind, str) else _list(_text(str(item).upper()) for item in _items(kind))
    return join_fragments([*parts, [Markup("type:"), *kinds]], ",")


def _property(name: str, value: object) -> Fragments:
    schema = value if isinstance(value, Mapping) else {}
    fragments = [name, Markup(":{")]
    if schema.get("description"):
        fragments += [Markup("description:"), *_text(schema["description"]), Markup(",")]
    if schema.get("nullable"):
        fragments.append(Markup("nullable:true,"))
    return [*fragments, *_describe(schema), Markup("}")]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """One call behind the other, each between control tokens."""
    return [
        part for call in calls for part in (Markup(f"{OPEN}call:"), call.name, *_value(call.arguments), Markup(CLOSE))
    ]


def _value(value: object) -> Fragments:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        pairs = sorted(value.items(), key=lambda pair: pair[0].lower())
        return [Markup("{"), *join_fragments(([key, ":", *_value(item)] for key, item in pairs), ","), Markup("}")]
    return _list(map(_value, value)) if isinstance(value, Sequence) else [dump(value)]


def _text(value: object) -> Fragments:
    return between(QUOTE, str(value), QUOTE)


def _list(items: Iterable[Fragments]) -> Fragments:
    return [Markup("["), *join_fragments(items, ","), Markup("]")]


def _items(value: object) -> Sequence[object]:
    return value if isinstance(value, Sequence) else ()


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every call between control tokens; None when there is none or one of them is broken."""
    calls = []
    start = text.find(OPEN)
    while start >= 0:
        name = _CALL.match(text, skip_blanks(text, start + len(OPEN)))
        found = read_value(text, name.end(), NOTATION) if name is not None else None
        if name is None or found is None or not isinstance(found[0], dict):
            return None
        end = skip_blanks(text, found[1])
        if not text.startswith(CLOSE, end):
            return None
        calls.append(ToolCall(name[1], found[0]))
        start = text.find(OPEN, end)
    return calls or None


def _read_text(text: str, at: int) -> tuple[str, int] | None:
    start = at + len(QUOTE)
    end = text.find(QUOTE, start) if text.startswith(QUOTE, at) else -1
    return (text[start:end], end + len(QUOTE)) if end >= 0 else None


def _read_key(text: str, at: int) -> tuple[str, int] | None:
    bare = _KEY.match(text, at)
    return (bare[0].rstrip(), bare.end()) if bare is not None else _read_text(text, at)


NOTATION = Notation(_read_text, _read_key)
