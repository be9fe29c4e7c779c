"""Tool format of Ling: that of Qwen, its description without leading line breaks and with thinking off."""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, json_lines
from llamafactory.rendering.markup import WRAPPED_JINJA, Fragments, Markup, quote
from llamafactory.rendering.tools import qwen

HEAD = qwen.HEAD.lstrip("\n")
TAIL = f"{qwen.TAIL}\ndetailed thinking off"
STARTS = qwen.STARTS

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- '\\n' ~ "
    + WRAPPED_JINJA + " | tojson -}}{%- endfor -%}{{- " + quote(TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = qwen.CALLS_JINJA


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """One wrapped JSON schema a line between `<tools>` tags."""
    return [Markup(HEAD), json_lines(tools, wrapped=True), Markup(TAIL)]


render_calls = qwen.render_calls
parse_calls = qwen.parse_calls
