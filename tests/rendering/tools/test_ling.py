"""The tool format of Ling: Qwen's, with another description."""

from __future__ import annotations

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import ling, qwen

CALLS = [ToolCall("f", {"a": "</tool_call>"}), ToolCall("g", {})]


def test_tools_are_described_as_to_qwen_with_thinking_off() -> None:
    text = plain(ling.render_tools([{"name": "f"}], "today"))
    assert text == plain(qwen.render_tools([{"name": "f"}], "today")).lstrip("\n") + "\ndetailed thinking off"


def test_calls_are_qwens() -> None:
    text = '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>\n'
    text += '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    assert plain(ling.render_calls(CALLS)) == text
    assert ling.parse_calls(text) == CALLS
