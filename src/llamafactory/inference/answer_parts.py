"""Take an answer apart while it streams: the thought it begins with, its text, and the tool calls behind that.

The pieces joined are the same however the text was cut, so a whole answer is read by pushing it at once. Knows text and
tool formats, no engine and no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from llamafactory.inference.streaming import StopFilter
from llamafactory.rendering.calls import Schema, ToolCall, read_whole_json, to_calls, unwrap
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.tools import ToolFormat, load_tool_format


@dataclass(frozen=True, slots=True)
class Piece:
    """What became certain: a piece of the thought, of the text, and at the end the calls."""

    thought: str = ""
    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class CallReader(Protocol):
    """Finds tool calls in a stream of text."""

    def push(self, text: str) -> str:
        """Add text; returns what is certain to be no call."""
        ...

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The text still held back, and the calls; a broken call is text."""
        ...


class NoCalls:
    """Reads no calls: all text is text."""

    def push(self, text: str) -> str:
        return text

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        return "", ()


class _Head:
    """The beginning of a text: its blanks, and what follows them. Work stays linear however many blanks there are."""

    def __init__(self) -> None:
        self._blanks: list[str] = []
        self.found = ""

    def push(self, text: str) -> None:
        if self.found:
            self.found += text
            return
        self.found = text.lstrip()
        self._blanks.append(text[: len(text) - len(self.found)])

    @property
    def whole(self) -> str:
        return "".join(self._blanks) + self.found


class _Tail:
    """Holds back the blanks at the end of a stream of text until something follows them."""

    def __init__(self) -> None:
        self._blanks: list[str] = []

    def push(self, text: str) -> str:
        body = text.rstrip()
        if not body:
            self._blanks.append(text)
            return ""
        shown = "".join(self._blanks) + body
        self._blanks = [text[len(body) :]]
        return shown


class FormatCalls:
    """Reads the calls of a tool format. tools: schemas of the tools the model was told about.

    Text is shown up to the first place where calls may begin, without the blanks before it; text behind calls is
    dropped.
    """

    def __init__(self, tool_format: ToolFormat, tools: Sequence[Schema]) -> None:
        self._parse = partial(tool_format.parse_calls, tools=tools)
        starts, names = tool_format.STARTS, [str(unwrap(tool)["name"]) for tool in tools]
        self._first = [start.replace("{name}", name) for start in starts.answer for name in names]
        self._filter = StopFilter(starts.anywhere)
        self._all: list[str] = []
        self._head: _Head | None = _Head()  # while the answer may begin with calls
        self._begun = False
        self._start = 0  # where calls begin, as far as text went through the filter
        self._tail = _Tail()
        self._given = 0

    def push(self, text: str) -> str:
        self._all.append(text)
        if self._begun:
            return ""
        if self._head is not None:
            text = self._look_at_head(text)
        safe = self._filter.push(text)
        self._start += len(safe)
        self._begun = self._begun or self._filter.stopped
        shown = self._tail.push(safe)
        self._given += len(shown)
        return shown

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        whole = "".join(self._all)
        calls = self._parse(whole[self._start :]) if self._begun else None
        return ("", tuple(calls)) if calls else (whole[self._given :], ())

    def _look_at_head(self, text: str) -> str:
        """Decide whether the answer begins with calls; returns the text to go on with, empty while it is open."""
        assert self._head is not None
        self._head.push(text)
        found = self._head.found
        self._begun = any(found.startswith(start) for start in self._first)
        if self._begun or any(start.startswith(found) for start in self._first):
            return ""
        text, self._head = self._head.whole, None
        return text


class JsonCalls:
    """Reads an answer that is the JSON of one call or a list of them, as a schema forced it to be."""

    def __init__(self) -> None:
        self._all: list[str] = []

    def push(self, text: str) -> str:
        self._all.append(text)
        return ""

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        whole = "".join(self._all)
        calls = to_calls(read_whole_json(whole), needed=True)
        return ("", tuple(calls)) if calls else (whole, ())


class _Trim:
    """Drop blanks at the beginning and the end of a stream of text."""

    def __init__(self) -> None:
        self._tail = _Tail()
        self._started = False

    def push(self, text: str) -> str:
        text = text if self._started else text.lstrip()
        self._started = self._started or bool(text)
        return self._tail.push(text) if text else ""


class ThoughtReader:
    """Tells the thought an answer begins with from what follows; a thought that never ends is all thought.

    words: around the thought, None when there are no thoughts. begun: the prompt already ends with the first of them.
    """

    def __init__(self, words: tuple[str, str] | None, *, begun: bool = False) -> None:
        self._opening, self._closing = words or ("", "")
        self._filter = StopFilter((self._closing,))
        self._trim = _Trim()
        self._head = _Head()
        self._held = ""
        self._stage = "after" if words is None else "inside" if begun else "before"
        self._leading = False  # line breaks between the thought and the text are dropped

    def push(self, text: str) -> tuple[str, str]:
        """Add text; returns what is certain of the thought and of the text behind it."""
        if self._stage == "before":
            text = self._look_for_opening(text)
        if self._stage == "inside":
            return self._think(text)
        return "", self._behind(text)

    def finish(self) -> tuple[str, str]:
        """What was still held back."""
        if self._stage == "inside":
            return self._trim.push(self._filter.finish()), ""
        return "", self._head.whole if self._stage == "before" else ""

    def _look_for_opening(self, text: str) -> str:
        self._head.push(text)
        found = self._head.found
        if found.startswith(self._opening):
            self._stage = "inside"
            return found[len(self._opening) :]
        if self._opening.startswith(found):
            return ""
        self._stage = "after"
        return self._head.whole

    def _think(self, text: str) -> tuple[str, str]:
        joined = self._held + text
        thought = self._filter.push(text)
        self._held = joined[len(thought) :]
        if not self._filter.stopped:
            return self._trim.push(thought), ""
        rest, self._held = self._held[len(self._closing) :], ""
        self._stage, self._leading = "after", True
        return self._trim.push(thought), self._behind(rest)

    def _behind(self, text: str) -> str:
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        return text


@dataclass(frozen=True, slots=True)
class Shown:
    """A piece of an answer as people see it."""

    text: str
    is_thought: bool = False


def to_shown(thought: str, text: str) -> list[Shown]:
    """What a ThoughtReader found, in order; nothing for nothing."""
    return [piece for piece in (Shown(thought, is_thought=True), Shown(text)) if piece.text]


def needs_controls(renderer: Renderer, thought_words: Sequence[str] = (), *, calls: bool) -> bool:
    """True when the words around thoughts or calls are control tokens, which engines else leave out of the text."""
    starts = load_tool_format(renderer.tool_format).STARTS
    marks = [*thought_words, *((*starts.anywhere, *starts.answer) if calls else ())]
    return any(renderer.encoder.holds_control(mark) for mark in marks)


class AnswerReader:
    """Thought, text and calls of one answer. max_calls: calls beyond are dropped; 0 keeps all."""

    def __init__(self, thoughts: ThoughtReader, calls: CallReader, *, max_calls: int = 0) -> None:
        self._thoughts = thoughts
        self._calls = calls
        self._max_calls = max_calls

    def push(self, text: str) -> Piece:
        """Add text; returns what became certain."""
        thought, rest = self._thoughts.push(text)
        return Piece(thought, self._calls.push(rest) if rest else "")

    def finish(self) -> Piece:
        """What was held back, and the calls."""
        thought, rest = self._thoughts.finish()
        text = self._calls.push(rest)
        more, calls = self._calls.finish()
        return Piece(thought, text + more, calls[: self._max_calls] if self._max_calls else calls)
