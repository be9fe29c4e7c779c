"""Tool format of Qwen 2.5 and 3: JSON calls between `<tool_call>` tags."""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, begins, between, dump, json_lines, read_json, to_call
from llamafactory.rendering.markup import (
    ARGUMENTS_JINJA,
    CALL_JINJA,
    WRAPPED_JINJA,
    Fragments,
    Markup,
    join_fragments,
    quote,
)

HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
OPEN, CLOSE = "<tool_call>", "</tool_call>"
STARTS = Starts(anywhere=(OPEN,))

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- '\\n' ~ "
    + WRAPPED_JINJA + " | tojson -}}{%- endfor -%}{{- " + quote(TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = (
    CALL_JINJA + "{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}{{- "
    + quote(f'{OPEN}\n{{"name": ') + " ~ call.name | tojson ~ ', \"arguments\": ' ~ " + ARGUMENTS_JINJA
    + " ~ " + quote(f"}}\n{CLOSE}") + " -}}{%- endfor -%}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """One wrapped JSON schema a line between `<tools>` tags."""
    return [Markup(HEAD), json_lines(tools, wrapped=True), Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """One tagged JSON object for each call."""
    return join_fragments(
        (between(f"{OPEN}\n", dump({"name": call.name, "arguments": call.arguments}), f"\n{CLOSE}") for call in calls),
        "\n",
    )


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every tagged call; None when there is none or one of them is broken."""
    calls = []
    start = text.find(OPEN)
    while start >= 0:
        found = read_json(text, start + len(OPEN))
        call = to_call(found[0]) if found else None
        if found is None or call is None or not begins(text, found[1], CLOSE):
            return None
        calls.append(call)
        start = text.find(OPEN, found[1])
    return calls or None
