"""Tool format of GLM-4.5 and later: the function's name behind `<tool_call>`, then tagged keys and values.

GLM-4.7 leaves out the line breaks, which is read as well. Text that spells a JSON value is read back as that value,
unless the tools are known and declare a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, json_lines
from llamafactory.rendering.markup import WRAPPED_JINJA, Fragments, Markup, join_fragments, quote
from llamafactory.rendering.tagged_calls import Tags, calls_jinja, read_calls, write_call

HEAD = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TAIL = """
</tools>

For each function call, output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>
"""
OPEN = "<tool_call>"
STARTS = Starts(anywhere=(OPEN,))
TAGS = Tags(
    name=("", ""),
    key=("<arg_key>", "</arg_key>"),
    value=("\n<arg_value>", "</arg_value>"),
    end="</tool_call>",
)

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- '\\n' ~ " + WRAPPED_JINJA
    + " | tojson -}}{%- endfor -%}{{- " + quote(TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = "{{- '\\n' -}}" + calls_jinja(TAGS, OPEN, "")


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """One wrapped JSON schema a line between `<tools>` tags, then how to call."""
    return [Markup(HEAD), json_lines(tools, wrapped=True), Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """Each call on lines of its own, a line break in front."""
    written = join_fragments(([Markup(OPEN), *write_call(call, TAGS)] for call in calls), "\n")
    return [Markup("\n"), *written]


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every tagged call; None when there is none or one of them is broken."""
    return read_calls(text, (OPEN, ""), TAGS, tools)
