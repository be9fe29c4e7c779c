"""Tool format of MiniMax-Text-01 and M1: a JSON call on each line of one `<tool_calls>` block."""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import (
    Schema,
    Starts,
    ToolCall,
    begins,
    dump,
    json_lines,
    read_json,
    skip_blanks,
    to_call,
)
from llamafactory.rendering.markup import (
    ARGUMENTS_JINJA,
    BARE_JINJA,
    CALL_JINJA,
    Fragments,
    Markup,
    join_fragments,
    quote,
)

HEAD = "You are provided with these tools:\n<tools>"
TAIL = """
</tools>

If you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide tool-name and json-object of arguments, following the format below:
<tool_calls>
{"name": <tool-name-1>, "arguments": <args-json-object-1>}
...
</tool_calls>"""  # noqa: E501
OPEN, CLOSE = "<tool_calls>", "</tool_calls>"
STARTS = Starts(anywhere=(OPEN,))

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- '\\n' ~ " + BARE_JINJA + " | tojson -}}{%- endfor -%}{{- "
    + quote(TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = (
    "{{- " + quote(f"{OPEN}\n") + " -}}" + CALL_JINJA
    + "{{- '{\"name\": ' ~ call.name | tojson ~ ', \"arguments\": ' ~ " + ARGUMENTS_JINJA
    + " ~ '}\\n' -}}{%- endfor -%}{{- " + quote(CLOSE) + " -}}"
)  # fmt: skip


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """One bare JSON schema a line between `<tools>` tags, then how to call."""
    return [Markup(HEAD), json_lines(tools, wrapped=False), Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """One JSON object a line in a block."""
    objects: list[Fragments] = [[dump({"name": call.name, "arguments": call.arguments})] for call in calls]
    return [Markup(f"{OPEN}\n"), *join_fragments(objects, "\n"), Markup(f"\n{CLOSE}")]


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read the calls of every block; None when there is none or one of them is broken."""
    calls = []
    start = text.find(OPEN)
    while start >= 0:
        at = start + len(OPEN)
        while not begins(text, at, CLOSE):
            found = read_json(text, at)
            call = to_call(found[0]) if found else None
            if found is None or call is None:
                return None
            calls.append(call)
            at = skip_blanks(text, found[1])
        start = text.find(OPEN, at)
    return calls or None
