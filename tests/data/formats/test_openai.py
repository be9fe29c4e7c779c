"""openai rows: tool calls, parallel tool results, text parts; nothing is put into the system prompt."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.fields import RowError
from llamafactory.data.formats.openai import to_record
from llamafactory.rendering.records import Conversation, Message

MakeEntry = Callable[..., DatasetEntry]


def call(name: str, arguments: object) -> dict[str, object]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.fixture
def entry(make_entry: MakeEntry) -> DatasetEntry:
    return make_entry(formatting="openai", columns={"tools": "tools"})


def convert(entry: DatasetEntry, *messages: dict[str, object], **row: object) -> Conversation:
    record = to_record({"messages": list(messages), **row}, entry, "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    return record


USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def test_parallel_calls_and_results_stay_apart(entry: DatasetEntry) -> None:
    calls = {"role": "assistant", "content": None, "tool_calls": [call("f", '{"x": 1}'), call("g", {"y": 2})]}
    results = [{"role": "tool", "content": "1", "tool_call_id": "1"}, {"role": "tool", "content": "2"}]
    record = convert(entry, USER, calls, *results, ANSWER, tools=[{"type": "function", "function": {"name": "f"}}])
    assert [message.role for message in record.messages] == [
        "user",
        "function",
        "observation",
        "observation",
        "assistant",
    ]
    assert json.loads(record.messages[1].content) == [
        {"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}},
    ]  # fmt: skip
    assert json.loads(record.tools)[0]["function"]["name"] == "f"


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_prompt_is_untouched(entry: DatasetEntry, role: str) -> None:
    assert convert(entry, {"role": role, "content": "Be kind."}, USER, ANSWER).system == "Be kind."
    assert convert(entry, USER, ANSWER).system == ""
    assert convert(entry, USER, ANSWER, tools=[]).tools == ""


def test_text_before_calls_is_kept(entry: DatasetEntry) -> None:
    record = convert(entry, USER, {"role": "assistant", "content": "Let me see. ", "tool_calls": [call("f", {})]})
    assert record.messages[1] == Message("function", 'Let me see. [{"name": "f", "arguments": {}}]')


def test_text_parts_are_joined(entry: DatasetEntry) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert convert(entry, {"role": "user", "content": parts}, ANSWER).messages[0].content == "ab"


def test_own_tags(make_entry: MakeEntry) -> None:
    tags = {"role_tag": "r", "content_tag": "c", "observation_tag": "result", "assistant_tag": "ai"}
    entry = make_entry(formatting="openai", tags=tags)
    messages = [
        {"r": "user", "c": "q"},
        {"r": "ai", "tool_calls": [call("f", None)]},
        {"r": "result", "c": "1"},
        {"r": "ai", "c": "a"},
    ]
    record = convert(entry, *messages)
    assert [message.role for message in record.messages] == ["user", "function", "observation", "assistant"]


@pytest.mark.parametrize(
    ("messages", "field", "expected"),
    [
        ([ANSWER], "messages[0]", "a user or observation message"),
        ([USER, USER, ANSWER], "messages[1]", "an assistant or function message"),
        ([USER, ANSWER, ANSWER], "messages[2]", "a user or observation message"),
        (
            [USER, ANSWER, {"role": "tool", "content": "1"}, USER, ANSWER],
            "messages[3]",
            "an assistant or function message",
        ),
        ([USER], "messages", "a last message from the assistant"),
        ([USER, {"role": "assistant", "content": None}], "messages[1].content", "text"),
        ([USER, {"role": "assistant", "tool_calls": [{"name": "f"}]}], "messages[1].tool_calls[0]", '{"function"'),
        (
            [USER, {"role": "assistant", "tool_calls": [call("f", "{")]}],
            "messages[1].tool_calls[0].function.arguments",
            "a JSON object",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [call("f", [1])]}],
            "messages[1].tool_calls[0].function.arguments",
            "a JSON object",
        ),
        ([USER, {"role": "assistant", "tool_calls": "f()"}], "messages[1].tool_calls", "a list of calls"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "messages[0].content[0]", "a text part"),
    ],
)
def test_bad_rows_are_named(entry: DatasetEntry, messages: list[object], field: str, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        to_record({"messages": messages}, entry, "set.json:2", stage_kind="conversation")
    assert (caught.value.source, caught.value.field) == ("set.json:2", field)
    assert caught.value.expected.startswith(expected)
