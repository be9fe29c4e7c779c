"""Tool calls and tool schemas as values: reading them from JSON text, and the JSON spelling the formats share.

Knows no format's texts (see `tools/`) and no template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from llamafactory.errors import DataError
from llamafactory.rendering.markup import Fragments, Markup

Schema = Mapping[str, object]
"""A function's schema, `{name, description, parameters}`, bare or inside `{"type": "function", "function": ...}`."""

_DECODER = json.JSONDecoder()
_BLANK = " \t\r\n"
_CALL_START = re.compile(r'\[?\{ ?"name"')
_MAX_STARTS = 64  # places tried, so that hostile text costs linear time


@dataclass(frozen=True)
class ToolCall:
    """A function to call and its arguments by name."""

    name: str
    arguments: Mapping[str, object]

    @property
    def arguments_json(self) -> str:
        """The arguments as a JSON object."""
        return dump(self.arguments)


@dataclass(frozen=True, slots=True)
class Starts:
    """What the calls of a format begin with, so that a stream of text can be shown up to there.

    anywhere: texts that begin calls wherever they stand. answer: only at the beginning of the answer, blanks aside;
    `{name}` stands for the name of a tool.
    """

    anywhere: tuple[str, ...] = ()
    answer: tuple[str, ...] = ()


def dump(value: object, *, indent: int | None = None) -> str:
    """JSON as the tool formats write it: no escapes for other scripts, a blank behind comma and colon."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def unwrap(tool: Schema) -> Schema:
    """The bare schema of a tool."""
    inner = tool.get("function") if tool.get("type") == "function" else None
    return inner if isinstance(inner, Mapping) else tool


def wrap(tool: Schema) -> Schema:
    """The schema of a tool inside `{"type": "function", "function": ...}`."""
    return tool if isinstance(tool.get("function"), Mapping) else {"type": "function", "function": tool}


def skip_blanks(text: str, start: int) -> int:
    """The first place from `start` on that holds no blank."""
    while start < len(text) and text[start] in _BLANK:
        start += 1
    return start


def begins(text: str, start: int, word: str) -> bool:
    """True when `word` stands at `start`, blanks skipped."""
    return text.startswith(word, skip_blanks(text, start))


def read_json(text: str, start: int = 0) -> tuple[object, int] | None:
    """The JSON value that begins at `start` (blanks skipped) and where it ends; None when there is none."""
    try:
        return _DECODER.raw_decode(text, skip_blanks(text, start))
    except (ValueError, RecursionError):
        return None


def read_whole_json(text: str) -> object | None:
    """The JSON value that is all of `text`, blanks aside; None when it is anything else."""
    found = read_json(text)
    return found[0] if found is not None and not text[found[1] :].strip() else None


def to_call(value: object, *, key: str = "arguments", needed: bool = False) -> ToolCall | None:
    """A call from `{"name": ..., key: {...}}`; arguments: an object or its JSON text, absent unless needed."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str) or (needed and key not in value):
        return None
    given = value.get(key, {})
    if isinstance(given, str):
        given = read_whole_json(given) if given.strip() else {}
    return ToolCall(value["name"], given) if isinstance(given, Mapping) else None


def to_calls(value: object, *, key: str = "arguments", needed: bool = False) -> list[ToolCall] | None:
    """Calls from one object or a list of them; None unless every one is a call."""
    items = value if isinstance(value, list) else [value]
    calls = [call for item in items if (call := to_call(item, key=key, needed=needed)) is not None]
    return calls if calls and len(calls) == len(items) else None


def read_tools(text: str, source: str) -> list[Schema]:
    """The tool schemas of a record. Raises DataError naming the row when the text is not a JSON list of objects."""
    if not text.strip():
        return []
    value = read_whole_json(text)
    tools: list[Schema] = []
    for tool in value if isinstance(value, list) else [value]:
        if isinstance(tool, Mapping) and isinstance(unwrap(tool).get("name"), str):
            tools.append(tool)
        else:
            raise DataError(
                f"{source or 'conversation'}: tools must be a JSON list of function schemas, each with a name, got "
                f"{_short(text)}; the model is told about tools in its own format, so they must be readable"
            )
    return tools


def read_function_message(content: str, words: tuple[str, str], source: str) -> tuple[str, list[ToolCall]]:
    """The text before the calls, and the calls, of a `function` message.

    The calls are JSON (an object or a list), alone, behind text, or each between the call words.
    Raises DataError naming the row when they cannot be read.
    """
    # JSON at the very end comes first: text before it may hold the call words, and calls between them end with one.
    found = next((hit for start in _starts(content) if (hit := _tail_calls(content, start))), None)
    if found is None and words[0] in content:
        found = _between(content, words)
    if found is None:
        raise DataError(
            f"{source or 'conversation'}: a function message must be JSON calls, like "
            f'{{"name": "f", "arguments": {{}}}} or a list of them, got {_short(content)}; the call is written in the '
            "model's own format, so it must be readable; fix the row"
        )
    return found


def _tail_calls(content: str, start: int) -> tuple[str, list[ToolCall]] | None:
    calls = to_calls(read_whole_json(content[start:]))
    return (content[:start] if content[:start].strip() else "", calls) if calls else None


def _starts(content: str) -> Iterator[int]:
    """Where JSON calls may begin: at the start, or at the first places that look like one."""
    yield 0
    yield from (found.start() for found in islice(_CALL_START.finditer(content), _MAX_STARTS))


def _between(content: str, words: tuple[str, str]) -> tuple[str, list[ToolCall]] | None:
    opening, closing = words
    before, *blocks = content.split(opening)
    calls: list[ToolCall] = []
    for block in blocks:
        inside, mark, _ = block.partition(closing)
        read = to_calls(read_whole_json(inside)) if mark else None
        if read is None:
            return None
        calls.extend(read)
    return before, calls


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")


def name_of(tool: Schema) -> str:
    """A tool's name."""
    return str(unwrap(tool).get("name", ""))


def json_lines(tools: Sequence[Schema], *, wrapped: bool) -> str:
    """One JSON schema a line, each with a line break in front."""
    return "".join("\n" + dump(wrap(tool) if wrapped else unwrap(tool)) for tool in tools)


def between(opening: str, inside: str, closing: str) -> Fragments:
    """Data between two pieces of markup."""
    return [Markup(opening), inside, Markup(closing)]
