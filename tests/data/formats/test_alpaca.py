"""alpaca rows become records; bad ones name file, row, field, expected and found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory.data.catalog import DatasetEntry, load_entries
from llamafactory.data.fields import RowError
from llamafactory.data.formats.alpaca import to_record
from llamafactory.errors import DataError
from llamafactory.rendering.records import Conversation, Feedback, Message, Preference, Prompt, Text

MakeEntry = Callable[..., DatasetEntry]
ROW = {"instruction": "Add.", "input": "1 2", "output": "3"}
UNWEIGHTED = "an answer without a loss weight, which has no meaning where whole answers are compared or judged"


def test_conversation(make_entry: MakeEntry) -> None:
    entry = make_entry(columns={"system": "sys", "history": "past", "tools": "tools"})
    row = {**ROW, "sys": "Be brief.", "past": [["a", "b"], ["c", "d"]], "tools": [{"name": "f"}]}
    record = to_record(row, entry, "set.json:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert [(message.role, message.content) for message in record.messages] == [
        ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "Add.\n1 2"), ("assistant", "3"),
    ]  # fmt: skip
    assert (record.system, record.tools, record.source) == ("Be brief.", '[{"name": "f"}]', "set.json:1")


@pytest.mark.parametrize(("query", "question"), [("", "Add."), (None, "Add."), ("1", "Add.\n1")])
def test_query_is_optional(make_entry: MakeEntry, query: str | None, question: str) -> None:
    record = to_record({**ROW, "input": query}, make_entry(), "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert record.messages[0].content == question


def test_absent_default_column_is_no_column(make_entry: MakeEntry) -> None:
    entry = make_entry(columns={"prompt": "q", "response": "a"})
    record = to_record({"q": "x", "a": "y"}, entry, "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert record.messages[0].content == "x"


def test_other_kinds(make_entry: MakeEntry) -> None:
    ranked = to_record(
        {**ROW, "good": "3", "bad": "4"},
        make_entry(ranking=True, columns={"chosen": "good", "rejected": "bad"}),
        "s:1",
        stage_kind="preference",
    )
    assert isinstance(ranked, Preference)
    assert (ranked.chosen, ranked.rejected) == (Message("assistant", "3"), Message("assistant", "4"))
    assert [message.role for message in ranked.prompt.messages] == ["user"]
    judged = to_record({**ROW, "ok": False}, make_entry(columns={"kto_tag": "ok"}), "s:1", stage_kind="feedback")
    assert isinstance(judged, Feedback)
    assert not judged.desirable
    asked = to_record(ROW, make_entry(), "s:1", stage_kind="prompt")
    assert isinstance(asked, Prompt)
    assert (len(asked.conversation.messages), asked.reference) == (1, "3")
    assert to_record({"text": "a b"}, make_entry(columns={"prompt": "text"}), "s:1", stage_kind="text") == Text(
        "a b", "s:1"
    )


@pytest.mark.parametrize(
    ("keys", "loss"),
    [
        ({}, None),
        ({"loss": False}, 0.0),
        ({"weight": 0.5}, 0.5),
        ({"loss": True, "weight": 2}, 1.0),
        ({"loss": None, "weight": 2}, 2.0),
        ({"loss": 0.37, "weight": "70 kg"}, None),  # a score and a text: columns that are not about us
    ],
)
def test_a_rows_weight_is_its_last_answers(make_entry: MakeEntry, keys: dict[str, object], loss: float | None) -> None:
    row = {**ROW, "past": [["a", "b"]], **keys}
    record = to_record(row, make_entry(columns={"history": "past"}), "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert [message.loss for message in record.messages] == [None, None, None, loss]


def test_a_column_the_entry_names_is_no_weight(make_entry: MakeEntry) -> None:
    record = to_record(
        {**ROW, "weight": "70 kg"}, make_entry(columns={"query": "weight"}), "s:1", stage_kind="conversation"
    )
    assert isinstance(record, Conversation)
    assert (record.messages[0].content, record.messages[1].loss) == ("Add.\n70 kg", None)


@pytest.mark.parametrize(("spelled", "value"), [("True", True), ("0", False), (1, True), ("false", False)])
def test_spelled_judgement(make_entry: MakeEntry, spelled: object, value: bool) -> None:
    entry = make_entry(columns={"kto_tag": "ok"})
    record = to_record({**ROW, "ok": spelled}, entry, "s:1", stage_kind="feedback")
    assert isinstance(record, Feedback)
    assert record.desirable is value


def test_media_paths_are_found_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    registry = {"set": {"file_name": "set.json", "columns": {"images": "pic"}}}
    entry = load_entries(["set"], registry, where="x", media_dir=tmp_path)[0]
    row = {"instruction": "<image>What?", "output": "A cat.", "pic": "a.png"}
    record = to_record(row, entry, "s:1", stage_kind="conversation")
    assert isinstance(record, Conversation)
    assert record.media.images == (str(tmp_path / "a.png"),)
    with pytest.raises(RowError, match=r"'pic': expected 1 images, one for each <image>.*found nothing"):
        to_record({**row, "pic": []}, entry, "s:1", stage_kind="conversation")


@pytest.mark.parametrize(
    ("change", "kind", "field", "expected", "found"),
    [
        ({"output": None}, "conversation", "output", "text", "nothing"),
        ({"output": 3}, "conversation", "output", "text", "int 3"),
        ({"instruction": ["a"]}, "conversation", "instruction", "text", "list ['a']"),
        ({"past": "a"}, "conversation", "past", "a list of [question, answer] pairs", "str 'a'"),
        ({"past": [["a"]]}, "conversation", "past[0]", "[question, answer], both text", "list ['a']"),
        ({"tools": "[{"}, "conversation", "tools", "a JSON list of tools", "str '[{'"),
        ({"ok": "maybe"}, "feedback", "ok", "true or false", "str 'maybe'"),
        ({"ok": None}, "feedback", "ok", "true or false", "nothing"),
        ({"good": "a", "bad": "a"}, "preference", "rejected", "an answer that differs from the chosen one", "str 'a'"),
        ({"good": "a"}, "preference", "bad", "text", "nothing"),
        ({"weight": -1}, "conversation", "weight", "true, false or a number from 0 upwards", "int -1"),
        ({"good": "a", "bad": "b", "weight": 0.5}, "preference", "chosen", UNWEIGHTED, "float 0.5"),
        ({"ok": True, "loss": False}, "feedback", "loss", UNWEIGHTED, "float 0.0"),
    ],
)
def test_bad_rows_are_named(
    make_entry: MakeEntry, change: dict[str, object], kind: str, field: str, expected: str, found: str
) -> None:
    columns = {"history": "past", "tools": "tools", "kto_tag": "ok", "chosen": "good", "rejected": "bad"}
    with pytest.raises(RowError) as caught:
        to_record({**ROW, **change}, make_entry(columns=columns), "set.json:7", stage_kind=kind)  # type: ignore[arg-type]
    error = caught.value
    assert (error.source, error.field, error.expected, error.found) == ("set.json:7", field, expected, found)
    assert isinstance(error, DataError)


def test_missing_field_is_suggested(make_entry: MakeEntry) -> None:
    row = {"instruction": "a", "ouput": "b"}
    with pytest.raises(RowError, match=r"'output'.*the row has instruction, ouput.*did you mean 'ouput'\?"):
        to_record(row, make_entry(), "s:1", stage_kind="conversation")
