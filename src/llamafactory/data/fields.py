"""Reading the fields of a row: the steps that all formats share, and the one shape of a complaint about a row.

A missing field and a field that holds null are the same thing. Knows no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.kinds import Kind
from llamafactory.data.sources import Row
from llamafactory.errors import DataError, did_you_mean
from llamafactory.rendering.records import Conversation, Feedback, Media, Message, Preference, Prompt, Record, Text

PLACEHOLDERS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}


class RowError(DataError):
    """A row that cannot be used; source is "file:row"."""

    def __init__(self, source: str, field: str, *, expected: str, found: str, fix: str) -> None:
        super().__init__(f"{source}: field {field!r}: expected {expected}, found {found}; {fix}")
        self.source = source
        self.field = field
        self.expected = expected
        self.found = found


def bad_field(source: str, field: str, *, expected: str, found: object, fix: str = "correct the row") -> RowError:
    """Describe a row that cannot be used: file and row, field, expected, found, and the cure."""
    return RowError(source, field, expected=expected, found=describe(found), fix=fix)


def describe(value: object) -> str:
    """A short rendering of a value for a message."""
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def missing_field(source: str, column: str, row: Row, *, expected: str) -> RowError:
    """Like `bad_field` for an absent or null field; names the fields that the row has."""
    if column in row:
        return bad_field(source, column, expected=expected, found=None, fix="fill it in or remove the row")
    names = ", ".join(map(str, row)) or "no fields"
    fix = f"the row has {names}; correct the row or the columns map{did_you_mean(column, row)}"
    return bad_field(source, column, expected=expected, found=None, fix=fix)


def text_of(row: Row, column: str | None, source: str, *, required: bool = False) -> str:
    """The text in `column`, or an empty string when it is absent and not required."""
    value = None if column is None else row.get(column)
    if type(value) is str:
        return value
    if value is None:
        if required:
            raise missing_field(source, str(column), row, expected="text")
        return ""
    raise bad_field(source, str(column), expected="text", found=value)


def tools_of(row: Row, column: str | None, source: str) -> str:
    """The tool schemas as JSON text; a list or an object is dumped, an empty one means no tools."""
    value = None if column is None else row.get(column)
    if value is None or value == "" or value == []:
        return ""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        raise bad_field(source, str(column), expected="a JSON list of tools", found=value)
    if value.strip():
        try:
            json.loads(value)
        except json.JSONDecodeError as error:
            raise bad_field(
                source,
                str(column),
                expected="a JSON list of tools",
                found=value,
                fix=f"{error.msg} at character {error.pos}",
            ) from error
    return value


def media_of(row: Row, entry: DatasetEntry, messages: Sequence[Message], source: str) -> Media:
    """Collect media paths; checks that every medium has its placeholder in the messages."""
    columns = entry.columns
    if columns.images is None and columns.videos is None and columns.audios is None:
        return Media()
    found: dict[str, tuple[object, ...]] = {}
    for key, placeholder in PLACEHOLDERS.items():
        column = getattr(columns, key)
        if column is None:
            continue
        media = _media_list(row.get(column), entry.media_dir, column, source)
        wanted = sum(message.content.count(placeholder) for message in messages)
        if wanted != len(media):
            raise bad_field(
                source,
                column,
                expected=f"{wanted} {key}, one for each {placeholder} in the messages",
                found=list(media) or None,
                fix=f"add or remove {key} or placeholders",
            )
        found[key] = media
    return Media(**found)


def _media_list(value: object, root: Path | None, column: str, source: str) -> tuple[object, ...]:
    if value is None:
        return ()
    items = list(value) if isinstance(value, list | tuple) else [value]
    return tuple(_medium(item, root, column, source) for item in items)


def _medium(item: object, root: Path | None, column: str, source: str) -> object:
    if isinstance(item, list):
        return tuple(_medium(frame, root, column, source) for frame in item)
    if isinstance(item, str):
        path = None if root is None else root / item
        return str(path) if path is not None and path.is_file() else item
    if isinstance(item, bytes | Mapping):
        return item
    raise bad_field(source, column, expected="a path, bytes or a list of frames", found=item)


def judgement_of(row: Row, entry: DatasetEntry, source: str) -> bool:
    """The kto tag; text files spell it true or false."""
    column = str(entry.columns.kto_tag)
    value = row.get(column)
    if isinstance(value, bool):
        return value
    if value is None:
        raise missing_field(source, column, row, expected="true or false")
    spelled = {"true": True, "1": True, "false": False, "0": False}.get(str(value).strip().lower())
    if spelled is None:
        raise bad_field(source, column, expected="true or false", found=value)
    return spelled


def check_calls(content: str, source: str, field: str) -> None:
    """Raise DataError when a tool-call message that looks like JSON is not a call or a list of calls."""
    text = content.strip()
    if text[:1] not in {"{", "["}:
        if not text:
            raise bad_field(source, field, expected="JSON tool calls", found=content)
        return
    expected = 'JSON such as {"name": ..., "arguments": {...}} (arguments may be left out), or a list of these'
    try:
        calls = json.loads(text)
    except json.JSONDecodeError as error:
        raise bad_field(
            source, field, expected=expected, found=content, fix=f"{error.msg} at character {error.pos}"
        ) from error
    for call in calls if isinstance(calls, list) else [calls]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise bad_field(source, field, expected=expected, found=call)


def loss_of(message: Row, source: str, field: str = "") -> float | None:
    """The loss weight that a message (or, without `field`, a row) gives itself under `loss` or `weight`."""
    value = message.get("loss")
    key = "loss"
    if value is None:
        value, key = message.get("weight"), "weight"
    if value is None:
        return None
    if isinstance(value, bool | int | float) and value >= 0:
        return float(value)
    place = f"{field}.{key}" if field else key
    raise bad_field(source, place, expected="true, false or a number from 0 upwards", found=value)


def row_loss_of(row: Row, entry: DatasetEntry, source: str) -> float | None:
    """The loss weight that a row gives its last answer: `loss` true or false, or a number as `weight`.

    Columns of these names that the entry maps, or that hold anything else (a score, a text), are not about the loss.
    """
    if "loss" not in row and "weight" not in row:
        return None
    named, loss, weight = entry.columns.names().values(), row.get("loss"), row.get("weight")
    given: dict[str, object] = {}
    if "loss" not in named and isinstance(loss, bool):
        given["loss"] = loss
    if "weight" not in named and isinstance(weight, int | float) and not isinstance(weight, bool):
        given["weight"] = weight
    return loss_of(given, source)


def _check_unweighted(answer: Message, source: str, field: str) -> None:
    """Refuse a loss weight where whole answers are compared or judged."""
    if answer.loss not in {None, 1.0}:
        raise bad_field(
            source,
            field,
            expected="an answer without a loss weight, which has no meaning where whole answers are compared or judged",
            found=answer.loss,
            fix="remove `loss` and `weight` from the row",
        )


def assemble(
    kind: Kind, messages: Sequence[Message], conversation: Conversation, *, row: Row, entry: DatasetEntry, source: str
) -> Record:
    """Make the record a single-answer kind needs. messages: the turns with the answer last, if there is one.

    conversation: the same data as a Conversation over all `messages`.
    """
    if kind == "conversation":
        return conversation
    if kind == "feedback":
        _check_unweighted(messages[-1], source, "loss")
        return Feedback(conversation, judgement_of(row, entry, source))
    if kind == "text":
        return Text(messages[0].content, source)
    has_answer = messages[-1].role in {"assistant", "function"}
    prompt = messages[:-1] if has_answer else messages
    return Prompt(
        Conversation(tuple(prompt), conversation.system, conversation.tools, conversation.media, source),
        reference=messages[-1].content if has_answer else "",
        reference_role=messages[-1].role if has_answer else "assistant",
    )


def prefer(prompt: Conversation, chosen: Message, rejected: Message, source: str) -> Preference:
    """Make a preference; the two answers must differ and carry no weights. Raises DataError otherwise."""
    for field, answer in (("chosen", chosen), ("rejected", rejected)):
        _check_unweighted(answer, source, field)
    if chosen.content == rejected.content and chosen.role == rejected.role:
        raise bad_field(
            source,
            "rejected",
            expected="an answer that differs from the chosen one",
            found=rejected.content,
            fix="remove the row",
        )
    return Preference(prompt, chosen, rejected)
