"""Tool format of Seed-OSS: a `<seed:tool_call>` block for each call, a tag for the function and for each argument.

Text that spells a JSON value, or one of Python's True, False and None, is read back as that value, unless the tools are
known and declare a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, dump
from llamafactory.rendering.literals import literal_or_text
from llamafactory.rendering.markup import Fragments, Markup, join_fragments, quote
from llamafactory.rendering.tagged_calls import Tags, calls_jinja, read_calls, write_call

HEAD = (
    "system\nYou are Doubao, a helpful AI assistant. You may call one or more functions to assist with the user query."
    "Tool List:\nYou are authorized to use the following tools (described in JSON Schema format). Before performing "
    "any task, you must decide how to call them based on the descriptions and parameters of these tools.\n"
)
TAIL = """
工具调用请遵循如下格式:
<seed:tool_call>
<function=example_function_name>
<parameter=example_parameter_1>value_1</parameter>
<parameter=example_parameter_2>This is the value for the second parameter
that can span
multiple lines</parameter>
</function>
</seed:tool_call>
"""
OPEN, CLOSE = "<seed:tool_call>", "</seed:tool_call>"
STARTS = Starts(anywhere=(OPEN,))
TAGS = Tags(
    name=("<function=", ">"),
    key=("<parameter=", ">"),
    value=("", "</parameter>"),
    end="</function>",
    read=literal_or_text,
)

TOOLS_JINJA = "{{- " + quote(HEAD) + " ~ tools | tojson ~ " + quote(TAIL) + " -}}"
CALLS_JINJA = "{{- '\\n' -}}" + calls_jinja(TAGS, f"{OPEN}\n", f"\n{CLOSE}")


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """A JSON list of the schemas as they are given, then how to call."""
    return [Markup(HEAD), dump(list(tools)), Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """A block for each call, a line break in front."""
    blocks = ([Markup(f"{OPEN}\n"), *write_call(call, TAGS), Markup(f"\n{CLOSE}")] for call in calls)
    return [Markup("\n"), *join_fragments(blocks, "\n")]


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every block; None when there is none or one of them is broken."""
    return read_calls(text, (OPEN, CLOSE), TAGS, tools)
