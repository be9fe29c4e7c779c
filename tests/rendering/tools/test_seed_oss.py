"""The tool format of Seed-OSS: exact text, other and broken forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import seed_oss

Read = Callable[[str, str], object]

CALLS = [ToolCall("f", {"s": 'a\n"b"', "ok": True, "o": {"k": [None, "x"]}}), ToolCall("g", {})]
TEXT = """
<seed:tool_call>
<function=f>
<parameter=s>a
"b"</parameter>
<parameter=ok>true</parameter>
<parameter=o>{"k": [null, "x"]}</parameter>
</function>
</seed:tool_call>
<seed:tool_call>
<function=g>
</function>
</seed:tool_call>"""


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    """The function's tag is closed, which LLaMA-Factory forgot: it read the vendor's `<function=f>` as `f>`."""
    assert plain(seed_oss.render_calls(CALLS)) == TEXT
    assert seed_oss.parse_calls(TEXT) == CALLS


def test_tools_are_a_list_of_schemas_as_given() -> None:
    text = plain(seed_oss.render_tools([{"type": "function", "function": {"name": "f"}}, {"name": "g"}], "today"))
    assert '\n[{"type": "function", "function": {"name": "f"}}, {"name": "g"}]\n工具调用请遵循如下格式:\n' in text
    assert text.endswith("multiple lines</parameter>\n</function>\n</seed:tool_call>\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ok.<seed:tool_call><function=f><parameter=a>1</parameter></function></seed:tool_call>", [("f", {"a": 1})]),
        (
            "<seed:tool_call>\n<function=f>\n<parameter=a>True</parameter>\n"
            "<parameter=b>{'k': [None, 'x']}</parameter>\n</function>\n</seed:tool_call>",
            [("f", {"a": True, "b": {"k": [None, "x"]}})],
        ),
        ("<seed:tool_call>\n<function=f\n<parameter=a>1</parameter>\n</function>\n</seed:tool_call>", None),
        ("<seed:tool_call>\n<function=f>\n<parameter=a>1\n</function>\n</seed:tool_call>", None),
        ("<seed:tool_call>\n</function>\n</seed:tool_call>", None),
        ("<function=f>\n</function>", None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("seed_oss", text) == expected
