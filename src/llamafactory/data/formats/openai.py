"""openai: messages with roles system, user, assistant and tool; an assistant message may carry `tool_calls`.

Nothing is added to the system prompt. Results of parallel tool calls stay separate messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from llamafactory.data.catalog import DatasetEntry, Tags
from llamafactory.data.fields import bad_field, loss_of, text_of
from llamafactory.data.formats.sharegpt import check_end, check_order, message_list, to_kind, to_message
from llamafactory.data.kinds import Kind
from llamafactory.data.sources import Row
from llamafactory.rendering.records import Message, Record, Text


def to_record(row: Row, entry: DatasetEntry, source: str, *, stage_kind: Kind) -> Record:
    """Convert one row. Raises DataError naming file, row, field, expected and found."""
    column = str(entry.columns.messages)
    items = message_list(row, column, source)
    tags = entry.tags
    system = text_of(row, entry.columns.system, source)
    start = 0
    if items[0].get(tags.role_tag) in {tags.system_tag, "developer"}:
        system, start = _text(items[0], tags, source, f"{column}[0]"), 1
    messages = [_message(item, tags, source, f"{column}[{at}]") for at, item in enumerate(items[start:], start)]
    if stage_kind == "text" and len(messages) == 1:
        return Text(messages[0].content, source)
    check_order(messages, source, column=column, start=start)
    check_end(messages, source, column=column, kind=stage_kind)
    return to_kind(row, entry, source, messages=messages, system=system, kind=stage_kind)


def _message(item: Row, tags: Tags, source: str, field: str) -> Message:
    calls = item.get("tool_calls")
    if calls and item.get(tags.role_tag) == tags.assistant_tag:
        text = _text(item, tags, source, field, required=False)
        return Message("function", text + _calls(calls, source, field), loss_of(item, source, field))
    if isinstance(item.get(tags.content_tag), list):
        item = {**item, tags.content_tag: _text(item, tags, source, field)}
    if item.get(tags.role_tag) == "tool":
        item = {**item, tags.role_tag: tags.observation_tag}
    return to_message(item, tags, source, field)


def _text(item: Row, tags: Tags, source: str, field: str, *, required: bool = True) -> str:
    """The text of a message; a list of text parts is joined."""
    content = item.get(tags.content_tag)
    if isinstance(content, list):
        return "".join(_part(part, source, f"{field}.{tags.content_tag}[{at}]") for at, part in enumerate(content))
    return text_of({f"{field}.{tags.content_tag}": content}, f"{field}.{tags.content_tag}", source, required=required)


def _part(part: object, source: str, field: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise bad_field(
        source,
        field,
        expected='a text part {"type": "text", "text": ...}',
        found=part,
        fix="put media into their own columns, with placeholders in the text",
    )


def _calls(calls: object, source: str, field: str) -> str:
    """The calls as a JSON list of {name, arguments}; arguments given as JSON text become the object they spell."""
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise bad_field(source, f"{field}.tool_calls", expected="a list of calls", found=calls)
    return json.dumps(
        [_call(call, source, f"{field}.tool_calls[{at}]") for at, call in enumerate(calls)], ensure_ascii=False
    )


def _call(call: object, source: str, field: str) -> dict[str, object]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise bad_field(source, field, expected='{"function": {"name": ..., "arguments": ...}}', found=call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError as error:
            raise bad_field(source, f"{field}.function.arguments", expected="a JSON object", found=arguments) from error
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise bad_field(source, f"{field}.function.arguments", expected="a JSON object", found=arguments)
    return {"name": function["name"], "arguments": arguments}
