"""sharegpt rows: alternation, tools, loss keys, preference and feedback; bad shapes are named."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.fields import RowError
from llamafactory.data.formats.sharegpt import to_record
from llamafactory.rendering.records import Conversation, Feedback, Message, Preference, Prompt, Text

MakeEntry = Callable[..., DatasetEntry]
CALL = '{"name": "f", "arguments": {"x": 1}}'


def talk(*turns: tuple[str, object]) -> list[dict[str, object]]:
    return [{"from": role, "value": value} for role, value in turns]


@pytest.fixture
def entry(make_entry: MakeEntry) -> DatasetEntry:
    columns = {"messages": "conversations", "system": "system", "tools": "tools", "kto_tag": "ok"}
    return make_entry(formatting="sharegpt", columns=columns)


def test_roles_tools_and_system(entry: DatasetEntry) -> None:
    turns = talk(("system", "S"), ("human", "q"), ("function_call", CALL), ("observation", "o"), ("gpt", "a"))
    record = to_record(
        {"conversations": turns, "system": "other", "tools": "[]"}, entry, "s:1", stage_kind="conversation"
    )
    assert isinstance(record, Conversation)
    assert record.messages == (
        Message("user", "q"), Message("function", CALL), Message("observation", "o"), Message("assistant", "a"),
    )  # fmt: skip
    assert (record.system, record.tools) == ("S", "[]")


def test_json_values_and_json_text_of_messages(entry: DatasetEntry) -> None:
    turns = talk(
        ("human", "q"), ("function_call", [{"name": "f", "arguments": {}}]), ("observation", {"r": 1}), ("gpt", "a")
    )
    record = to_record({"conversations": turns}, entry, "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert record.messages[1].content == '[{"name": "f", "arguments": {}}]'
    assert record.messages[2].content == '{"r": 1}'


@pytest.mark.parametrize(
    ("keys", "loss"),
    [({}, None), ({"loss": False}, 0.0), ({"loss": True}, 1.0), ({"weight": 0.5}, 0.5), ({"loss": None}, None)],
)
def test_loss_of_a_message(entry: DatasetEntry, keys: dict[str, object], loss: float | None) -> None:
    turns = talk(("human", "q"), ("gpt", "a"))
    turns[1].update(keys)
    record = to_record({"conversations": turns}, entry, "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert record.messages[1].loss == loss


def test_a_rows_weight_yields_to_that_of_its_last_answer(entry: DatasetEntry) -> None:
    turns = talk(("human", "q"), ("gpt", "a"), ("human", "q"), ("gpt", "b"))
    for own, loss in ({}, 0.5), ({"weight": 0.25}, 0.25):
        row = {"conversations": [*turns[:-1], {**turns[-1], **own}], "weight": 0.5}
        record = to_record(row, entry, "s:1", stage_kind="conversation")
        assert isinstance(record, Conversation)
        assert [message.loss for message in record.messages] == [None, None, None, loss]


def test_weights_of_compared_and_judged_answers_are_refused(make_entry: MakeEntry, entry: DatasetEntry) -> None:
    pairs = make_entry(formatting="sharegpt", ranking=True, columns={"chosen": "good", "rejected": "bad"})
    good, bad = talk(("gpt", "a"), ("gpt", "b"))
    row = {"conversations": talk(("human", "q")), "good": {**good, "loss": True}, "bad": bad}
    assert isinstance(to_record(row, pairs, "s:1", stage_kind="preference"), Preference)
    with pytest.raises(RowError, match=r"'chosen': expected an answer without a loss weight.*remove `loss`"):
        to_record({**row, "good": {**good, "weight": 0.25}}, pairs, "s:1", stage_kind="preference")
    with pytest.raises(RowError, match=r"'rejected': expected an answer without a loss weight"):
        to_record({**row, "bad": {**bad, "loss": False}}, pairs, "s:1", stage_kind="preference")
    judged = {"conversations": [*talk(("human", "q")), {**good, "weight": 0.25}], "ok": True}
    with pytest.raises(RowError, match=r"expected an answer without a loss weight"):
        to_record(judged, entry, "s:1", stage_kind="feedback")


def test_results_of_several_calls_and_calls_without_arguments(entry: DatasetEntry) -> None:
    turns = talk(("human", "q"), ("function_call", '[{"name": "f"}, {"name": "g"}]'))
    turns += talk(("observation", "1"), ("observation", "2"), ("gpt", "a"))
    record = to_record({"conversations": turns}, entry, "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert [message.content for message in record.messages[2:]] == ["1", "2", "a"]


def test_preference(make_entry: MakeEntry) -> None:
    entry = make_entry(formatting="sharegpt", ranking=True, columns={"chosen": "good", "rejected": "bad"})
    row = {"conversations": talk(("human", "q")), "good": talk(("gpt", "a"))[0], "bad": talk(("gpt", "b"))}
    record = to_record(row, entry, "s:1", stage_kind="preference")
    assert isinstance(record, Preference)
    assert (record.chosen.content, record.rejected.content, len(record.prompt.messages)) == ("a", "b", 1)
    with pytest.raises(RowError, match="expected a last message from the user"):
        to_record({**row, "conversations": talk(("human", "q"), ("gpt", "a"))}, entry, "s:1", stage_kind="preference")
    with pytest.raises(RowError, match=r"field 'bad\.from': expected an assistant or function role, found str 'user'"):
        to_record({**row, "bad": talk(("human", "b"))[0]}, entry, "s:1", stage_kind="preference")


def test_feedback_prompt_and_text(entry: DatasetEntry) -> None:
    row = {"conversations": talk(("human", "q"), ("gpt", "a")), "ok": True}
    judged = to_record(row, entry, "s:1", stage_kind="feedback")
    assert isinstance(judged, Feedback)
    assert judged.desirable
    asked = to_record(row, entry, "s:1", stage_kind="prompt")
    assert isinstance(asked, Prompt)
    assert (asked.reference, len(asked.conversation.messages)) == ("a", 1)
    open_question = to_record({"conversations": talk(("human", "q"))}, entry, "s:1", stage_kind="prompt")
    assert isinstance(open_question, Prompt)
    assert (open_question.reference, len(open_question.conversation.messages)) == ("", 1)
    assert to_record({"conversations": talk(("human", "long text"))}, entry, "s:1", stage_kind="text") == Text(
        "long text", "s:1"
    )


@pytest.mark.parametrize(
    ("turns", "field", "expected"),
    [
        (None, "conversations", "a list of messages"),
        ([], "conversations", "a list of messages"),
        ("hello", "conversations", "a list of messages"),
        (["hello"], "conversations[0]", "a message object"),
        (talk(("human", "q")), "conversations", "a last message from the assistant"),
        (talk(("gpt", "a"), ("human", "q")), "conversations[0]", "a user or observation message"),
        (talk(("human", "q"), ("human", "q")), "conversations[1]", "an assistant or function message"),
        (talk(("human", "q"), ("bot", "a")), "conversations[1].from", "one of human, gpt, observation, function_call"),
        (talk(("human", "q"), ("system", "a")), "conversations[1].from", "no system message after the first message"),
        (talk(("human", "q"), ("gpt", None)), "conversations[1].value", "text"),
        (talk(("human", "q"), ("gpt", 3)), "conversations[1].value", "text"),
        ([{"role": "user", "content": "q"}], "conversations[0].from", "a role"),
        (talk(("human", "q"), ("function_call", '{"name": "f"')), "conversations[1].value", "JSON such as"),
        (talk(("human", "q"), ("function_call", '{"nam": "f"}')), "conversations[1].value", "JSON such as"),
        (talk(("human", "q"), ("function_call", " ")), "conversations[1].value", "JSON tool calls"),
        (
            [*talk(("human", "q")), {"from": "gpt", "value": "a", "loss": -1}],
            "conversations[1].loss",
            "true, false or a number",
        ),
        (
            [*talk(("human", "q")), {"from": "gpt", "value": "a", "weight": "x"}],
            "conversations[1].weight",
            "true, false or",
        ),
    ],
)
def test_bad_rows_are_named(entry: DatasetEntry, turns: object, field: str, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        to_record({"conversations": turns}, entry, "set.json:4", stage_kind="conversation")
    assert caught.value.source == "set.json:4"
    assert caught.value.field == field
    assert caught.value.expected.startswith(expected)
