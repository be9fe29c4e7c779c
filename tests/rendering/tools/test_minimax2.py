"""The tool format of MiniMax-M2: exact text, other and broken forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import minimax2

Read = Callable[[str, str], object]

CALLS = [ToolCall("f", {"s": 'a\n"b"', "ok": True, "o": {"k": [None, "x"]}}), ToolCall("g", {})]
TEXT = """
<minimax:tool_call>
<invoke name="f">
<parameter name="s">a
"b"</parameter>
<parameter name="ok">true</parameter>
<parameter name="o">{"k": [null, "x"]}</parameter>
</invoke>
<invoke name="g">
</invoke>
</minimax:tool_call>"""


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    """All calls stand in one block, which LLaMA-Factory forgot, so that it could not read its own calls."""
    assert plain(minimax2.render_calls(CALLS)) == TEXT
    assert minimax2.parse_calls(TEXT) == CALLS


def test_tools_are_tagged_bare_schemas() -> None:
    text = plain(minimax2.render_tools([{"type": "function", "function": {"name": "f"}}, {"name": "g"}], "today"))
    assert '\n\n<tools>\n<tool>{"name": "f"}</tool>\n<tool>{"name": "g"}</tool>\n</tools>\n\n' in text
    assert text.endswith("...\n</invoke>\n</minimax:tool_call>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'Ok.<minimax:tool_call><invoke name="f"><parameter name="a">1</parameter></invoke></minimax:tool_call>',
            [("f", {"a": 1})],
        ),
        (
            '<minimax:tool_call><invoke name="f"></invoke></minimax:tool_call>\n'
            '<minimax:tool_call><invoke name="g"></invoke></minimax:tool_call>',
            [("f", {}), ("g", {})],
        ),
        (
            '<minimax:tool_call><invoke name="f"><parameter name="a"></invoke></parameter></invoke>'
            "</minimax:tool_call>",
            [("f", {"a": "</invoke>"})],
        ),
        ('<invoke name="f">\n<parameter name="a">1</parameter>\n</invoke>', None),
        ('<minimax:tool_call><invoke name="f"></invoke>', None),
        ("<minimax:tool_call><invoke name=f></invoke></minimax:tool_call>", None),
        ('<minimax:tool_call><invoke name="f"><parameter name="a">1</invoke></minimax:tool_call>', None),
        ("<minimax:tool_call></minimax:tool_call>", None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("minimax2", text) == expected
