"""Arguments without quotes are read as the types their tool declares."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import pytest

from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.declared_types import fit
from llamafactory.rendering.markup import plain
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.tools import FORMATS, load_tool_format

UNQUOTED = ("qwen3_5", "glm4_moe", "minimax2", "seed_oss")
PROPERTIES = {
    "text": {"type": "string"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "code": {"$ref": "#/$defs/Code"},
    "count": {"type": "integer"},
    "list": {"type": "array", "items": {"type": "string"}},
}
TOOL = {
    "name": "f",
    "parameters": {"type": "object", "properties": PROPERTIES, "$defs": {"Code": {"type": "string"}}},
}
ARGUMENTS = {"text": "5", "maybe": "true", "code": "[1]", "count": 5, "list": ["5"], "unknown": "x"}


@pytest.mark.parametrize("name", FORMATS.names())
@pytest.mark.parametrize("tool", [TOOL, {"type": "function", "function": TOOL}])
def test_a_declared_text_stays_text(name: str, tool: Mapping[str, object]) -> None:
    tool_format = load_tool_format(name)
    calls = [ToolCall("f", ARGUMENTS), ToolCall("f", {"maybe": None, "text": "null"})]
    text = plain(tool_format.render_calls(calls))
    assert tool_format.parse_calls(text, [tool]) == calls
    guessed = tool_format.parse_calls(text)
    assert (guessed == calls) is (name not in UNQUOTED)


@pytest.mark.parametrize(
    ("text", "value", "schema", "expected"),
    [
        ("5", 5, None, 5),
        ("5", 5, {}, 5),
        ("5", 5, {"description": "no type"}, 5),
        ("5", 5, {"type": "string"}, "5"),
        ("1.50", 1.5, {"type": "string"}, "1.50"),
        ("5", 5, {"type": ["string", "null"]}, "5"),
        ("null", None, {"type": ["string", "null"]}, None),
        ("null", None, {"type": "string", "nullable": True}, None),
        ("5", 5, {"type": ["string", "integer"]}, 5),
        ("5", 5, {"type": ["string", "number"]}, 5),
        ("5.5", 5.5, {"type": ["string", "integer"]}, "5.5"),
        ("true", True, {"type": ["string", "integer"]}, "true"),
        ("{}", {}, {"oneOf": [{"type": "string"}, {"type": "array"}]}, "{}"),
        ("1", 1, {"enum": ["1", "2"]}, "1"),
        ("1", 1, {"enum": [1, "1"]}, 1),
        ("1", 1, {"const": "1"}, "1"),
        ("abc", "abc", {"type": "integer"}, "abc"),
        ("5", 5, {"type": "boolean"}, 5),
    ],
)
def test_what_fits(text: str, value: object, schema: Mapping[str, object] | None, expected: object) -> None:
    found = fit(text, value, schema)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    "schema", [{"anyOf": "x"}, {"type": 3}, {"type": [{}]}, {"enum": "5"}, {"anyOf": [None, {"anyOf": []}]}]
)
def test_a_broken_schema_decides_nothing(schema: Mapping[str, object]) -> None:
    assert fit("5", 5, schema) == 5


def test_the_renderer_takes_the_tools_of_a_conversation(render_with: Callable[..., Renderer]) -> None:
    renderer = render_with("qwen3_5_nothink")
    call = Message("function", json.dumps({"name": "f", "arguments": {"text": "5"}}))
    answer = renderer.text(Conversation((Message("user", "q"), call))).rpartition("assistant\n")[2]
    assert renderer.parse_tools(answer) == [ToolCall("f", {"text": 5})]
    assert renderer.parse_tools(answer, json.dumps([TOOL])) == [ToolCall("f", {"text": "5"})]
