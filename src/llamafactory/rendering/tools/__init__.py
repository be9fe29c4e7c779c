"""Tool formats: how tools are described to a model, how it calls them, how its calls are read back. One file each.

A file defines `render_tools`, `render_calls`, `parse_calls` and `STARTS` (what calls begin with), and, for exported
chat templates, `TOOLS_JINJA` (writes the text for `tools`, may use `date_string`) and `CALLS_JINJA` (writes that for
`calls`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol, cast

from llamafactory.parts import Family
from llamafactory.rendering.calls import Schema, Starts, ToolCall
from llamafactory.rendering.markup import Fragments

FORMATS = Family(
    "tool_format",
    "llamafactory.rendering.tools",
    ("render_tools", "render_calls", "parse_calls", "STARTS", "TOOLS_JINJA", "CALLS_JINJA"),
)


class ToolFormat(Protocol):
    """One tool format; each file of this package is one."""

    STARTS: Starts
    TOOLS_JINJA: str
    CALLS_JINJA: str

    def render_tools(self, tools: Sequence[Schema], date: str) -> Fragments:
        """Describe tools to the model, to follow the system prompt. date: today, as the format writes it."""
        ...

    def render_calls(self, calls: Sequence[ToolCall]) -> Fragments:
        """Write calls as the model does."""
        ...

    def parse_calls(self, text: str, tools: Sequence[Schema] = ()) -> list[ToolCall] | None:
        """Read calls from what a model wrote, in linear time; None when it holds none or a broken one.

        tools: those the model was told of. A format that writes text without quotes asks them whether `5` is a text or
        a number; the others have no need of them.
        """
        ...


@functools.cache
def load_tool_format(name: str) -> ToolFormat:
    """The tool format called `name`. Raises ConfigError when there is none."""
    return cast("ToolFormat", FORMATS.load(name))
