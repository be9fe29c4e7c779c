"""Tool format of Qwen 3.5 and Qwen3-Coder: a tag for the function, one for each argument, values on their own lines.

Text that spells a JSON value, or one of Python's True, False and None, is read back as that value, unless the tools are
known and declare a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, json_lines
from llamafactory.rendering.literals import literal_or_text
from llamafactory.rendering.markup import BARE_JINJA, Fragments, Markup, join_fragments, quote
from llamafactory.rendering.tagged_calls import Tags, calls_jinja, read_calls, write_call

HEAD = "\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>"
TAIL = """
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
Reminder:
- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags
- Required parameters MUST be specified
- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT after
- If there is no function call available, answer the question like normal with your current knowledge and do not tell the user about function calls
</IMPORTANT>"""  # noqa: E501
OPEN, CLOSE = "<tool_call>", "</tool_call>"
STARTS = Starts(anywhere=(OPEN,))
TAGS = Tags(
    name=("<function=", ">"),
    key=("<parameter=", ">"),
    value=("\n", "\n</parameter>"),
    end="</function>",
    read=literal_or_text,
)

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- '\\n' ~ " + BARE_JINJA + " | tojson -}}{%- endfor -%}{{- "
    + quote(TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = calls_jinja(TAGS, f"{OPEN}\n", f"\n{CLOSE}")


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """One bare JSON schema a line between `<tools>` tags, then how to call."""
    return [Markup(HEAD), json_lines(tools, wrapped=False), Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """A block for each call, its arguments between tags."""
    return join_fragments(
        ([Markup(f"{OPEN}\n"), *write_call(call, TAGS), Markup(f"\n{CLOSE}")] for call in calls), "\n"
    )


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every block; None when there is none or one of them is broken."""
    return read_calls(text, (OPEN, CLOSE), TAGS, tools)
