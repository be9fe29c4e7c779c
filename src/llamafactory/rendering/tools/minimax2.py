"""Tool format of MiniMax-M2: `<invoke>` tags, those made at once inside one `<minimax:tool_call>` block.

Text that spells a JSON value is read back as that value, unless the tools are known and declare a text.
"""

from __future__ import annotations

from collections.abc import Sequence

from llamafactory.rendering.calls import Schema, Starts, ToolCall, between, dump, unwrap
from llamafactory.rendering.markup import BARE_JINJA, Fragments, Markup, join_fragments, quote
from llamafactory.rendering.tagged_calls import Tags, calls_jinja, read_calls, write_call

HEAD = (
    "\n\n# Tools\n\nYou may call one or more tools to assist with the user query.\n"
    "Here are the tools available in JSONSchema format:\n\n<tools>\n"
)
TAIL = """
</tools>

When making tool calls, use XML format to invoke tools and pass parameters:

<minimax:tool_call>
<invoke name="tool-name-1">
<parameter name="param-key-1">param-value-1</parameter>
<parameter name="param-key-2">param-value-2</parameter>
...
</invoke>
</minimax:tool_call>"""
OPEN, CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
STARTS = Starts(anywhere=(OPEN,))
TAGS = Tags(
    name=('<invoke name="', '">'),
    key=('<parameter name="', '">'),
    value=("", "</parameter>"),
    end="</invoke>",
)

TOOLS_JINJA = (
    "{{- " + quote(HEAD) + " -}}{%- for tool in tools -%}{{- '<tool>' ~ " + BARE_JINJA
    + " | tojson ~ '</tool>' -}}{%- if not loop.last -%}{{- '\\n' -}}{%- endif -%}{%- endfor -%}{{- "
    + quote(TAIL) + " -}}"
)  # fmt: skip
CALLS_JINJA = "{{- " + quote(f"\n{OPEN}\n") + " -}}" + calls_jinja(TAGS, "", "") + "{{- " + quote(f"\n{CLOSE}") + " -}}"


def render_tools(tools: Sequence[Schema], date: str) -> Fragments:
    """One tagged, bare JSON schema a line, then how to call."""
    described = join_fragments((between("<tool>", dump(unwrap(tool)), "</tool>") for tool in tools), "\n")
    return [Markup(HEAD), *described, Markup(TAIL)]


def render_calls(calls: Sequence[ToolCall]) -> Fragments:
    """One block with a tag for each call, a line break in front."""
    invoked = join_fragments((write_call(call, TAGS) for call in calls), "\n")
    return [Markup(f"\n{OPEN}\n"), *invoked, Markup(f"\n{CLOSE}")]


def parse_calls(text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
    """Read every block; None when there is none or one of them is broken."""
    return read_calls(text, (OPEN, CLOSE), TAGS, tools)
