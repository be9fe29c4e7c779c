"""The tool format of GLM-4.5: exact text, the vendor's templates, other and broken forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import glm4_moe

Read = Callable[[str, str], object]
Answer = Callable[..., str]

CALLS = [ToolCall("f", {"s": 'a\n"b"', "ok": True, "o": {"k": [None, "x"]}}), ToolCall("g", {})]
TEXT = """
<tool_call>f
<arg_key>s</arg_key>
<arg_value>a
"b"</arg_value>
<arg_key>ok</arg_key>
<arg_value>true</arg_value>
<arg_key>o</arg_key>
<arg_value>{"k": [null, "x"]}</arg_value>
</tool_call>
<tool_call>g
</tool_call>"""


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    """Every call is closed, which LLaMA-Factory forgot, so that it could not read its own calls."""
    assert plain(glm4_moe.render_calls(CALLS)) == TEXT
    assert glm4_moe.parse_calls(TEXT) == CALLS


def test_the_vendors_template_writes_the_same(vendor_answer: Answer) -> None:
    assert TEXT in vendor_answer("glm4moe.jinja", CALLS)


def test_tools_are_wrapped_schemas() -> None:
    text = plain(glm4_moe.render_tools([{"name": "f"}], "today"))
    assert '\n<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>\n' in text
    assert text.endswith("<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>", [("f", {"a": 1})]),
        ("<tool_call>f</tool_call><tool_call>g</tool_call>", [("f", {}), ("g", {})]),
        ("Let me see. <tool_call>f <arg_key>a</arg_key> <arg_value>x</arg_value> </tool_call>", [("f", {"a": "x"})]),
        ("<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>True</arg_value>\n</tool_call>", [("f", {"a": "True"})]),
        (
            "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value><arg_key></arg_value></tool</arg_value>\n</tool_call>",
            [("f", {"a": "<arg_key></arg_value></tool"})],
        ),
        ("\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>", None),
        ("\n<tool_call>f", None),
        ("<tool_call>f\n<arg_key>a</arg_key>\n</tool_call>", None),
        ("<tool_call>f\n<arg_value>1</arg_value>\n</tool_call>", None),
        ("<tool_call>two words\n</tool_call>", None),
        ("<tool_call>\n</tool_call>", None),
        ('<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    """JSON between the tags is Qwen's form, which LLaMA-Factory read here by mistake."""
    assert read("glm4_moe", text) == expected
