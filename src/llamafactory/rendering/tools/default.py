"""The ReAct-like tool format of templates without one of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, name_of, read_json, skip_blanks, unwrap
from llamafactory.rendering.markup import (
    ARGUMENTS_JINJA,
    BARE_JINJA,
    CALL_JINJA,
    Fragments,
    Markup,
    join_fragments,
    quote,
)

HEAD = "You have access to the following tools:\n"
TAIL = (
    "Use the following format if using a tool:\n```\nAction: tool name (one of [{names}])\n"
    "Action Input: the input to the tool, in a JSON format representing the kwargs "
    '(e.g. ```{{"input": "hello world", "num_beams": 5}}```)\n```\n'
)
ACTION, INPUT = "Action:", "Action Input:"
STARTS = Starts(anywhere=(ACTION,))

_ARGUMENT_JINJA = (
    "{{- '  - ' ~ name ~ ' (' ~ (value.type or '') ~ (', required' if name in required else '') ~ '): '"
    " ~ (value.description or '') -}}"
    "{%- if value.enum -%}{{- ', should be one of [' ~ value.enum | join(', ') ~ ']' -}}{%- endif -%}"
    "{%- set items = value.get('items') -%}"
    "{%- if items -%}{{- ', where each item should be ' ~ (items.type or '') -}}{%- endif -%}"
    "{{- '\\n' -}}"
)
TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- set named = namespace(names='') -%}{%- for tool in tools -%}{%- set schema = "
    + BARE_JINJA + " -%}{%- set named.names = named.names ~ ('' if loop.first else ', ') ~ schema.name -%}"
    "{{- '> Tool Name: ' ~ schema.name ~ '\\nTool Description: ' ~ (schema.description or '') ~ '\\nTool Args:\\n' -}}"
    "{%- set parameters = schema.parameters or {} -%}{%- set required = parameters.required or [] -%}"
    "{%- set properties = parameters.properties or {} -%}"
    "{%- for name in properties -%}{%- set value = properties[name] -%}" + _ARGUMENT_JINJA + "{%- endfor -%}"
    "{{- '\\n' -}}{%- endfor -%}{{- " + quote(TAIL.format(names="\x00")).replace("\x00", "' ~ named.names ~ '") + " -}}"
)  # fmt: skip
CALLS_JINJA = (
    CALL_JINJA + "{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}{{- "
    + quote(f"{ACTION} ") + " ~ call.name ~ " + quote(f"\n{INPUT} ") + " ~ " + ARGUMENTS_JINJA + " -}}{%- endfor -%}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """Name, description and arguments of each tool, then how to call it."""
    names = ", ".join(map(name_of, tools))
    return [Markup(HEAD), *map(_describe, tools), TAIL.format(names=names)]


def _describe(tool: Schema) -> str:
    schema = unwrap(tool)
    parameters = schema.get("parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    required = parameters.get("required") or ()
    properties = parameters.get("properties") or {}
    lines = [_argument(name, value, name in required) for name, value in properties.items()]
    return (
        f"> Tool Name: {name_of(tool)}\nTool Description: {schema.get('description', '')}\nTool Args:\n"
        + "".join(lines)
        + "\n"
    )


def _argument(name: str, value: Mapping[str, object], required: bool) -> str:
    kind = value.get("type", "")
    line = f"  - {name} ({kind}{', required' if required else ''}): {value.get('description', '')}"
    choices, items = value.get("enum"), value.get("items")
    if isinstance(choices, Sequence) and choices:
        line += f", should be one of [{', '.join(map(str, choices))}]"
    if isinstance(items, Mapping):
        line += f", where each item should be {items.get('type', '')}"
    return line + "\n"


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """Two lines for each call."""
    return join_fragments(
        ([Markup(f"{ACTION} "), call.name, Markup(f"\n{INPUT} "), call.arguments_json] for call in calls), "\n"
    )


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every pair of action and input; None when there is none or one of them is broken."""
    calls = []
    start = text.find(ACTION)
    while start >= 0:
        line_end = text.find("\n", start)
        name = text[start + len(ACTION) : line_end].strip() if line_end >= 0 else ""
        inputs = skip_blanks(text, line_end) if line_end >= 0 else -1
        if not name or not text.startswith(INPUT, inputs):
            return None
        found = read_json(text, inputs + len(INPUT))
        if found is None or not isinstance(found[0], Mapping):
            return None
        calls.append(ToolCall(name, found[0]))
        start = text.find(ACTION, found[1])
    return calls or None
