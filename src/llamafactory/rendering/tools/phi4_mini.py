"""Tool format of Phi-4-mini: tools as a JSON list, between control tokens that the template writes; calls as `default`.

Reads the calls the model itself writes, too: a JSON list behind `<|tool_call|>`.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, ToolCall, dump, read_whole_json, to_calls
from llamafactory.rendering.markup import Fragments
from llamafactory.rendering.tools import default
from llamafactory.rendering.tools.default import CALLS_JINJA as CALLS_JINJA
from llamafactory.rendering.tools.default import render_calls as render_calls

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"

TOOLS_JINJA = "{{- tools | tojson -}}"


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """The schemas as they were given."""
    return [dump(list(tools))]


def parse_calls(text: str) -> list[ToolCall] | None:
    """Read a JSON list behind the tag that begins calls, or else calls as `default` writes them."""
    inside = text.strip()
    if inside.startswith(OPEN):
        return to_calls(read_whole_json(inside.removeprefix(OPEN).removesuffix(CLOSE)), needed=True)
    return default.parse_calls(text)
