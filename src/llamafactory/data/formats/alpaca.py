"""alpaca: one instruction, an optional input, an answer; earlier turns in a history column."""

from __future__ import annotations

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.fields import assemble, bad_field, media_of, prefer, row_loss_of, text_of, tools_of
from llamafactory.data.kinds import Kind
from llamafactory.data.sources import Row
from llamafactory.rendering.records import Conversation, Message, Record, Text


def to_record(row: Row, entry: DatasetEntry, source: str, *, stage_kind: Kind) -> Record:
    """Convert one row. Raises DataError naming file, row, field, expected and found."""
    columns = entry.columns
    prompt = text_of(row, columns.prompt, source, required=True)
    query = text_of(row, columns.query, source)
    question = f"{prompt}\n{query}" if prompt and query else prompt or query
    if stage_kind == "text":
        return Text(question, source)
    loss = row_loss_of(row, entry, source)
    messages = [*_history(row, columns.history, source), Message("user", question)]
    if stage_kind != "preference":
        answer = text_of(row, columns.response, source, required=stage_kind != "prompt")
        if answer or stage_kind != "prompt":
            messages.append(Message("assistant", answer, loss))
    conversation = Conversation(
        tuple(messages),
        system=text_of(row, columns.system, source),
        tools=tools_of(row, columns.tools, source),
        media=media_of(row, entry, messages, source),
        source=source,
    )
    if stage_kind == "preference":
        chosen = Message("assistant", text_of(row, columns.chosen or "chosen", source, required=True), loss)
        rejected = Message("assistant", text_of(row, columns.rejected or "rejected", source, required=True), loss)
        return prefer(conversation, chosen, rejected, source)
    return assemble(stage_kind, messages, conversation, row=row, entry=entry, source=source)


def _history(row: Row, column: str | None, source: str) -> list[Message]:
    history = None if column is None else row.get(column)
    if not history:
        return []
    if not isinstance(history, list | tuple):
        raise bad_field(source, str(column), expected="a list of [question, answer] pairs", found=history)
    messages = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise bad_field(source, f"{column}[{index}]", expected="[question, answer], both text", found=pair)
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages
