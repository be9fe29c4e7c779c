"""The tool format of Gemma 4: exact text, the vendor's template, other and broken forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.markup import Markup, plain
from llamafactory.rendering.tools import gemma4

Read = Callable[[str, str], object]
Answer = Callable[..., str]

CALLS = [ToolCall("f", {"s": 'a\n"b"', "Ok": True, "o": {"z": [None, "x"], "k": 1.5}}), ToolCall("g", {})]
TEXT = (
    '<|tool_call>call:f{o:{k:1.5,z:[null,<|"|>x<|"|>]},Ok:true,s:<|"|>a\n"b"<|"|>}<tool_call|>'
    "<|tool_call>call:g{}<tool_call|>"
)


def test_calls_are_written_in_the_exact_form_and_read_back() -> None:
    """Keys are sorted whatever their case, as the vendor's template does."""
    assert plain(gemma4.render_calls(CALLS)) == TEXT
    assert gemma4.parse_calls(TEXT) == CALLS


def test_the_vendors_template_writes_the_same(vendor_answer: Answer) -> None:
    assert plain(gemma4.render_calls(CALLS)) in vendor_answer("gemma4_v5.jinja", CALLS)


def test_quotes_are_control_tokens_and_text_is_not() -> None:
    fragments = gemma4.render_calls([ToolCall("f", {"a": "<tool_call|>"})])
    assert fragments == ["<|tool_call>call:", "f", "{", "a", ":", '<|"|>', "<tool_call|>", '<|"|>', "}", "<tool_call|>"]
    assert [isinstance(part, Markup) for part in fragments] == [
        True,
        False,
        True,
        False,
        False,
        True,
        False,
        True,
        True,
        True,
    ]


def test_tools_are_declared_with_types_in_capitals() -> None:
    schema = {
        "name": "f",
        "description": "F",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "string", "description": "A"},
                "b": {"type": ["integer", "null"], "nullable": True},
                "c": {"type": "object", "properties": {"d": {"type": "number"}}, "required": ["d"]},
            },
            "required": ["a", "b"],
        },
    }
    q = '<|"|>'
    assert plain(gemma4.render_tools([schema, {"name": "g"}], "today")) == (
        f"declaration:f{{description:{q}F{q},parameters:{{properties:{{a:{{description:{q}A{q},type:{q}STRING{q}}},"
        f"b:{{nullable:true,type:[{q}INTEGER{q},{q}NULL{q}]}},"
        f"c:{{properties:{{d:{{type:{q}NUMBER{q}}}}},required:[{q}d{q}],type:{q}OBJECT{q}}}}},"
        f"required:[{q}a{q},{q}b{q}],type:{q}OBJECT{q}}}}}\n"
        f"declaration:g{{description:{q}{q}}}"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Ok.<|tool_call>call:f{a: <|"|>}<|"|> , b : [1, true]}<tool_call|>', [("f", {"a": "}", "b": [1, True]})]),
        ('<|tool_call>call:f{<|"|>a b:<|"|>:1}<tool_call|>', [("f", {"a b:": 1})]),
        ("<|tool_call>call:f{}<tool_call|>\n<|tool_call>call:g{}<tool_call|>", [("f", {}), ("g", {})]),
        ("<|tool_call>call:f{a:1}", None),
        ("<|tool_call>call:f{a:1<tool_call|>", None),
        ('<|tool_call>call:f{a:"x"}<tool_call|>', None),
        ('<|tool_call>call:f{a:<|"|>x}<tool_call|>', None),
        ("<|tool_call>call:f{a:x}<tool_call|>", None),
        ("<|tool_call>call:f[1]<tool_call|>", None),
        ("<|tool_call>call:{}<tool_call|>", None),
        ("<|tool_call>f{}<tool_call|>", None),
        ("<|tool_call>call:f{a}<tool_call|>", None),
    ],
)
def test_other_forms(read: Read, text: str, expected: object) -> None:
    assert read("gemma4", text) == expected
