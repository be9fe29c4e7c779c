"""Reading tool schemas and function messages."""

from __future__ import annotations

import pytest

from llamafactory.errors import DataError
from llamafactory.rendering.calls import ToolCall, read_function_message, read_tools, unwrap, wrap

WORDS = ("<tool_call>", "</tool_call>")


@pytest.mark.parametrize(
    ("content", "before", "names"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', "", ["f"]),
        ('[{"name": "f", "arguments": {}}, {"name": "g", "arguments": "{}"}]', "", ["f", "g"]),
        ('I call.[{"name": "f", "arguments": {}}]', "I call.", ["f"]),
        ('I call.\n{"name": "f", "arguments": {}}', "I call.\n", ["f"]),
        ('Go: <tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>', "Go: ", ["f", "g"]),
    ],
)
def test_function_messages_are_read_in_every_shape(content: str, before: str, names: list[str]) -> None:
    text, calls = read_function_message(content, WORDS, "")
    assert (text, [call.name for call in calls]) == (before, names)


@pytest.mark.parametrize("content", ["no json", '{"name": "f", "arguments": [1]}', "[]", '{"arguments": {}}', "{bad"])
def test_an_unreadable_function_message_names_the_row(content: str) -> None:
    with pytest.raises(DataError, match=r"talk\.json:7: a function message must be JSON calls, like .* got "):
        read_function_message(content, WORDS, "talk.json:7")


@pytest.mark.parametrize("text", ["{bad", '["f"]', '[{"description": "no name"}]', "3"])
def test_unreadable_tools_name_the_row(text: str) -> None:
    with pytest.raises(
        DataError, match=r"talk\.json:7: tools must be a JSON list of function schemas, each with a name"
    ):
        read_tools(text, "talk.json:7")


def test_tools_may_be_bare_wrapped_one_or_none() -> None:
    assert read_tools("", "") == []
    assert read_tools("[]", "") == []
    bare = {"name": "f"}
    assert unwrap(wrap(bare)) == bare
    assert wrap(wrap(bare)) == wrap(bare)
    assert read_tools('{"name": "f"}', "") == [bare]


def test_arguments_are_given_back_as_json() -> None:
    assert ToolCall("f", {"城": [1, None]}).arguments_json == '{"城": [1, null]}'
