"""sharegpt: a list of messages that alternate between the asking and the answering side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llamafactory.data.catalog import DatasetEntry, Tags
from llamafactory.data.fields import (
    assemble,
    bad_field,
    check_calls,
    loss_of,
    media_of,
    missing_field,
    prefer,
    row_loss_of,
    text_of,
    tools_of,
)
from llamafactory.data.kinds import Kind
from llamafactory.data.sources import Row
from llamafactory.errors import DataError
from llamafactory.rendering.records import TRAINED_ROLES, Conversation, Message, Record, Role, Text


def to_record(row: Row, entry: DatasetEntry, source: str, *, stage_kind: Kind) -> Record:
    """Convert one row. Raises DataError naming file, row, field, expected and found."""
    column = str(entry.columns.messages)
    items = message_list(row, column, source)
    tags = entry.tags
    system = text_of(row, entry.columns.system, source)
    start = 0
    if items and items[0].get(tags.role_tag) == tags.system_tag:
        system, start = content_of(items[0], tags, source, f"{column}[0]"), 1
    if stage_kind == "text" and len(items) - start == 1:
        return Text(content_of(items[start], tags, source, f"{column}[{start}]"), source)
    messages = [to_message(item, tags, source, f"{column}[{at}]") for at, item in enumerate(items[start:], start)]
    check_order(messages, source, column=column, start=start)
    check_end(messages, source, column=column, kind=stage_kind)
    return to_kind(row, entry, source, messages=messages, system=system, kind=stage_kind)


def to_kind(
    row: Row, entry: DatasetEntry, source: str, *, messages: Sequence[Message], system: str, kind: Kind
) -> Record:
    """Make the record of the asked kind from checked messages."""
    columns = entry.columns
    loss = row_loss_of(row, entry, source)
    messages = [*messages[:-1], _weighed(messages[-1], loss)]
    answers = []
    if kind == "preference":
        names = (columns.chosen or "chosen", columns.rejected or "rejected")
        answers = [_weighed(_answer(row, name, entry.tags, source), loss) for name in names]
    conversation = Conversation(
        tuple(messages),
        system=system,
        tools=tools_of(row, columns.tools, source),
        media=media_of(row, entry, messages, source),
        source=source,
    )
    if answers:
        return prefer(conversation, answers[0], answers[1], source)
    return assemble(kind, messages, conversation, row=row, entry=entry, source=source)


def message_list(row: Row, column: str, source: str) -> Sequence[Row]:
    """The list of message objects in a row."""
    value = row.get(column)
    if value is None:
        raise missing_field(source, column, row, expected="a list of messages")
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise bad_field(source, column, expected="a list of messages", found=value) from error
    if not isinstance(value, list) or not value:
        raise bad_field(source, column, expected="a list of messages", found=value)
    for at, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise bad_field(source, f"{column}[{at}]", expected="a message object", found=item)
    return value


def to_message(item: Row, tags: Tags, source: str, field: str) -> Message:
    """Convert one message object."""
    role = _role(item, tags, source, field)
    content = content_of(item, tags, source, field)
    if role == "function":
        check_calls(content, source, f"{field}.{tags.content_tag}")
    return Message(role, content, loss_of(item, source, field))


def content_of(item: Row, tags: Tags, source: str, field: str) -> str:
    """The text of a message; JSON values are written as JSON text."""
    content = item.get(tags.content_tag)
    if type(content) is str:
        return content
    if content is None:
        raise missing_field(source, f"{field}.{tags.content_tag}", item, expected="text")
    if isinstance(content, list | dict) and item.get(tags.role_tag) in {tags.function_tag, tags.observation_tag}:
        return json.dumps(content, ensure_ascii=False)
    raise bad_field(source, f"{field}.{tags.content_tag}", expected="text", found=content)


def roles_of(tags: Tags) -> dict[str, Role]:
    """Role word in the data -> our role."""
    return {
        tags.user_tag: "user",
        tags.assistant_tag: "assistant",
        tags.observation_tag: "observation",
        tags.function_tag: "function",
    }


def _role(item: Row, tags: Tags, source: str, field: str) -> Role:
    word = item.get(tags.role_tag)
    roles = roles_of(tags)
    if isinstance(word, str) and word in roles:
        return roles[word]
    if word is None:
        raise missing_field(source, f"{field}.{tags.role_tag}", item, expected="a role")
    if word == tags.system_tag:
        raise bad_field(
            source, f"{field}.{tags.role_tag}", expected="no system message after the first message", found=word
        )
    raise bad_field(
        source,
        f"{field}.{tags.role_tag}",
        expected=f"one of {', '.join(roles)}",
        found=word,
        fix="correct the row or the tags map",
    )


def _weighed(message: Message, loss: float | None) -> Message:
    """An answer with the weight of its row, unless it has its own."""
    if loss is None or message.loss is not None or message.role not in TRAINED_ROLES:
        return message
    return replace(message, loss=loss)


def check_order(messages: Sequence[Message], source: str, *, column: str, start: int) -> None:
    """Sides alternate, except that several tool results may follow each other."""
    before: Message | None = None
    for at, message in enumerate(messages, start):
        answers = message.role in TRAINED_ROLES
        if before is None:
            wrong = answers
        elif before.role == message.role == "observation":
            wrong = False
        else:
            wrong = answers == (before.role in TRAINED_ROLES)
        if wrong:
            due = before is not None and before.role not in TRAINED_ROLES
            raise _order_error(message, source, f"{column}[{at}]", answer_due=due)
        before = message


def _order_error(message: Message, source: str, field: str, *, answer_due: bool) -> DataError:
    """Complain about a message on the wrong side of the dialogue."""
    expected = "an assistant or function message" if answer_due else "a user or observation message"
    return bad_field(
        source,
        field,
        expected=f"{expected} (both sides must alternate)",
        found=message.role,
        fix="merge or remove messages",
    )


def check_end(messages: Sequence[Message], source: str, *, column: str, kind: Kind) -> None:
    """Check who speaks last: the assistant in training data, the user in a prompt that gets its answers elsewhere."""
    answered = bool(messages) and messages[-1].role in TRAINED_ROLES
    if not messages or (kind == "preference" and answered) or (kind in {"conversation", "feedback"} and not answered):
        expected = "a last message from the user" if kind == "preference" else "a last message from the assistant"
        raise bad_field(source, column, expected=expected, found=messages[-1].role if messages else None)
    if kind == "prompt" and answered and len(messages) == 1:
        raise bad_field(source, column, expected="a message from the user", found=messages[-1].role)


def _answer(row: Row, column: str, tags: Tags, source: str) -> Message:
    item = row.get(column)
    if item is None:
        raise missing_field(source, column, row, expected="an answer message")
    if isinstance(item, list) and len(item) == 1:
        item = item[0]
    if isinstance(item, str):
        return Message("assistant", item)
    if not isinstance(item, Mapping):
        raise bad_field(source, column, expected="an answer message", found=item)
    message = to_message(item, tags, source, column)
    if message.role not in TRAINED_ROLES:
        raise bad_field(
            source, f"{column}.{tags.role_tag}", expected="an assistant or function role", found=message.role
        )
    return message
