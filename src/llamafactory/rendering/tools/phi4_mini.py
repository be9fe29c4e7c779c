"""Tool format of Phi-4-mini: the tools as a JSON list, which the template puts between `<|tool|>` tags.

Calls are written as the default format writes them; JSON between the model's own `<|tool_call|>` tags is read as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, begins, dump, read_json, to_calls
from llamafactory.rendering.markup import Fragments
from llamafactory.rendering.tools import default

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"
STARTS = Starts(anywhere=(OPEN, default.ACTION))

TOOLS_JINJA = "{{- tools | tojson -}}"
CALLS_JINJA = default.CALLS_JINJA


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """A JSON list of the schemas as they are given."""
    return [dump(list(tools))]


render_calls = default.render_calls


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read tagged JSON calls or lists of them, or else calls of the default format: whichever comes first."""
    calls: list[ToolCall] = []
    start = text.find(OPEN)
    if start < 0 or default.ACTION in text[:start]:
        return default.parse_calls(text, tools)
    while start >= 0:
        found = read_json(text, start + len(OPEN))
        read = to_calls(found[0]) if found else None
        if found is None or read is None or not begins(text, found[1], CLOSE):
            return None
        calls += read
        start = text.find(OPEN, found[1])
    return calls
