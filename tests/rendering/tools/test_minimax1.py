"""The tool format of MiniMax-M1: exact text, other and broken forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import minimax1

Read = Callable[[str, str], object]

CALLS = [ToolCall("f", {"s": '</tool_calls>\n"表"'}), ToolCall("g", {})]
TEXT = (
    '<tool_calls>\n{"name": "f", "arguments": {"s": "</tool_calls>\\n\\"表\\""}}\n'
    '{"name": "g", "arguments": {}}\n</tool_calls>'
)


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    assert plain(minimax1.render_calls(CALLS)) == TEXT
    assert minimax1.parse_calls(TEXT) == CALLS


def test_tools_are_bare_schemas() -> None:
    text = plain(minimax1.render_tools([{"type": "function", "function": {"name": "f"}}], "today"))
    assert text.startswith('You are provided with these tools:\n<tools>\n{"name": "f"}\n</tools>\n\n')
    assert text.endswith("...\n</tool_calls>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Ok.<tool_calls>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_calls>', [("f", {"a": 1})]),
        ('<tool_calls>{"name": "f"}</tool_calls><tool_calls>{"name": "g"}</tool_calls>', [("f", {}), ("g", {})]),
        ('<tool_calls>\n{"name": "f"}\n', None),
        ('<tool_calls>\n{"name": "f"}\n{bad}\n</tool_calls>', None),
        ('<tool_calls>\n["f"]\n</tool_calls>', None),
        ("<tool_calls>\n</tool_calls>", None),
        ('{"name": "f", "arguments": {}}', None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("minimax1", text) == expected
