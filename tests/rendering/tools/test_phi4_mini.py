"""The tool format of Phi-4-mini: tools as JSON, calls of the default format, tagged JSON read as well."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import phi4_mini

Read = Callable[[str, str], object]


def test_tools_are_a_list_of_schemas_as_given() -> None:
    tools = [{"name": "f", "description": "表"}, {"type": "function", "function": {"name": "g"}}]
    text = '[{"name": "f", "description": "表"}, {"type": "function", "function": {"name": "g"}}]'
    assert plain(phi4_mini.render_tools(tools, "today")) == text


def test_calls_are_those_of_the_default_format() -> None:
    calls = [ToolCall("f", {"a": "<|tool_call|>"}), ToolCall("g", {})]
    text = 'Action: f\nAction Input: {"a": "<|tool_call|>"}\nAction: g\nAction Input: {}'
    assert plain(phi4_mini.render_calls(calls)) == text
    assert phi4_mini.parse_calls(text) == calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"name": "g"}]<|/tool_call|>',
            [("f", {"a": 1}), ("g", {})],
        ),
        ('Ok.<|tool_call|>{"name": "f"}<|/tool_call|><|tool_call|>{"name": "g"}<|/tool_call|>', [("f", {}), ("g", {})]),
        ('<|tool_call|>{"name": "f"}', None),
        ("<|tool_call|>[]<|/tool_call|>", None),
        ("<|tool_call|>{bad}<|/tool_call|>", None),
        ('[{"name": "f"}]', None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("phi4_mini", text) == expected
