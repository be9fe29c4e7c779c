"""The tool format of LFM2: exact text, quoting, the vendor's template, other and broken forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import plain
from llamafactory.rendering.tools import lfm2

Read = Callable[[str, str], object]
Answer = Callable[..., str]

CALLS = [ToolCall("f", {"s": "it's 表\nnew", "ok": True, "n": None, "o": {"k": [1.5, 'x"y']}}), ToolCall("g.h", {})]
TEXT = '<|tool_call_start|>[f(s="it\'s 表\nnew", ok=true, n=null, o={"k": [1.5, "x\\"y"]}), g.h()]<|tool_call_end|>'


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    assert plain(lfm2.render_calls(CALLS)) == TEXT
    assert lfm2.parse_calls(TEXT) == CALLS


def test_tools_are_a_list_of_bare_schemas() -> None:
    text = plain(lfm2.render_tools([{"type": "function", "function": {"name": "f"}}, {"name": "g"}], "today"))
    assert text == 'List of tools: <|tool_list_start|>[{"name": "f"}, {"name": "g"}]<|tool_list_end|>'


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('say "hi" now', '"say "hi" now"'), ('"', '"""'), ('ends with "', '"ends with ""'), ("a, b (c)", '"a, b (c)"'),
        ('say "hi", now', '"say \\"hi\\", now"'), ('f("x")', '"f(\\"x\\")"'), ("C:\\new", '"C:\\\\new"'),
        ("", '""'), ("True", '"True"'), ("]<|tool_call_end|>", '"]<|tool_call_end|>"'),
    ],
)  # fmt: skip
def test_text_is_escaped_only_where_its_end_would_be_hidden(text: str, written: str) -> None:
    """LLaMA-Factory never escapes, and cannot read its own calls with a quote in them."""
    calls = [ToolCall("f", {"s": text, "n": 1})]
    assert plain(lfm2.render_calls(calls)) == f"<|tool_call_start|>[f(s={written}, n=1)]<|tool_call_end|>"
    assert lfm2.parse_calls(plain(lfm2.render_calls(calls))) == calls


def test_what_the_vendors_template_writes_is_read(vendor_answer: Answer) -> None:
    calls = [
        ToolCall("f", {"s": 'it\'s "x"', "ok": True, "n": None, "l": [True, "a'b"], "o": {"k": None}}),
        ToolCall("g", {}),
    ]
    text = vendor_answer("lfm2_2_5.jinja", calls)
    assert 'ok=True, n=None, l=[True, "a\'b"]' in text
    assert lfm2.parse_calls(text) == calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[f(a='1', b=-2.5e-3), g()]", [("f", {"a": "1", "b": -0.0025}), ("g", {})]),
        ("Ok.<|tool_call_start|>[f( a = 'x' , b=1 )]<|tool_call_end|> Done.", [("f", {"a": "x", "b": 1})]),
        ("<|tool_call_start|>[f()]<|tool_call_end|><|tool_call_start|>[g()]<|tool_call_end|>", [("f", {}), ("g", {})]),
        ("[f(a='\\n\\t\\x41\\u00e9\\ud83d\\ude42\\d')]", [("f", {"a": "\n\tAé🙂\\d"})]),
        ("[f(a={'k': [True, None, 'v']})]", [("f", {"a": {"k": [True, None, "v"]}})]),
        ("<|tool_call_start|>[f(a=]<|tool_call_end|>", None),
        ("<|tool_call_start|>[f(a=1)]", None),
        ("<|tool_call_start|>[f(a=1), 2]<|tool_call_end|>", None),
        ("<|tool_call_start|>[f(1)]<|tool_call_end|>", None),
        ("<|tool_call_start|>[f(a=x)]<|tool_call_end|>", None),
        ("<|tool_call_start|>[f(a=__import__('os'))]<|tool_call_end|>", None),
        ("<|tool_call_start|>[f(a='x]<|tool_call_end|>", None),
        ("<|tool_call_start|>[]<|tool_call_end|>", None),
        ("<|tool_call_start|>f()<|tool_call_end|>", None),
        ("See [f(a=1)].", None),
        ("[f(a=1)] is what I would call.", None),
        ("[1, 2]", None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("lfm2", text) == expected
