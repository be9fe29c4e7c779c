"""The tool format of Qwen 3.5: exact text, values and their types, the vendor's template, broken calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import qwen3_5

Read = Callable[[str, str], object]
Answer = Callable[..., str]

CALLS = [ToolCall("f", {"s": 'a\n"b"', "n": 1.5, "o": {"k": [None, "x"]}}), ToolCall("g.h", {})]
TEXT = """<tool_call>
<function=f>
<parameter=s>
a
"b"
</parameter>
<parameter=n>
1.5
</parameter>
<parameter=o>
{"k": [null, "x"]}
</parameter>
</function>
</tool_call>
<tool_call>
<function=g.h>
</function>
</tool_call>"""


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    assert plain(qwen3_5.render_calls(CALLS)) == TEXT
    assert qwen3_5.parse_calls(TEXT) == CALLS


def test_tools_are_bare_schemas() -> None:
    text = plain(qwen3_5.render_tools([{"type": "function", "function": {"name": "f"}}], "today"))
    assert text.startswith(
        '\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n{"name": "f"}\n</tools>'
    )
    assert text.endswith("do not tell the user about function calls\n</IMPORTANT>")


def test_the_vendors_template_writes_the_same(vendor_answer: Answer) -> None:
    assert TEXT in vendor_answer("qwen3_8.jinja", CALLS)


def test_what_the_vendors_first_template_writes_for_truth_values_is_read(vendor_answer: Answer) -> None:
    calls = [ToolCall("f", {"yes": True, "no": False, "none": None, "list": [True, {"k": None}]})]
    text = vendor_answer("qwen3_5_think.jinja", calls)
    assert "\nTrue\n" in text
    assert qwen3_5.parse_calls(text) == calls


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1), ("-2.5e3", -2500.0), ("true", True), ("null", None), ("None", None), ("[1, 2]", [1, 2]),
        ("{'a': True, 'b': 'it\\'s'}", {"a": True, "b": "it's"}), ('"quoted"', '"quoted"'), ("'quoted'", "'quoted'"),
        ("NaN", "NaN"), ("01", "01"), ("", ""), ("\n", "\n"), (" a ", " a "), ("[1", "[1"), ("[x]", "[x]"),
        ("<b>&amp;</b>", "<b>&amp;</b>"), ("a</parameter>b", "a</parameter>b"), ("</function>", "</function>"),
        ("<parameter=x>", "<parameter=x>"), ("</tool_call>", "</tool_call>"), ("9" * 5000, "9" * 5000),
    ],
)  # fmt: skip
def test_a_value_has_the_type_its_text_spells(read: Read, value: str, expected: object) -> None:
    text = f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n</function>\n</tool_call>"
    assert read("qwen3_5", text) == [("f", {"a": expected})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Sure.\n<tool_call>\n<function=f>\n</function>\n</tool_call>\nDone.", [("f", {})]),
        ("<tool_call><function=f><parameter=a>1</parameter></function></tool_call>", [("f", {"a": 1})]),
        ("<tool_call><function=f></function>\n<function=g></function></tool_call>", [("f", {}), ("g", {})]),
        ("<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>", None),
        ("<tool_call>\n<function=f\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>", None),
        ("<tool_call>\n<function=f>\n<parameter=>\n1\n</parameter>\n</function>\n</tool_call>", None),
        ("<tool_call>\n<function=>\n</function>\n</tool_call>", None),
        ("<tool_call>\n<function=f>\n</function>", None),
        ("<tool_call>\n<function=f>\nwords\n</function>\n</tool_call>", None),
        ("<tool_call>\n<function=f>\n</function>\n</tool_call>\n<tool_call>\n<function=", None),
        ("<function=f>\n</function>", None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("qwen3_5", text) == expected
