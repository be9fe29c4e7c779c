"""Conversations of one shape are written once, with marks in place of their texts, which are then filled in.

A shape is the roles and loss weights of the messages, the mode, the tools and whether there is a system prompt. Only
texts that are written as they are take this way; thoughts, calls and control tokens in text do not. Knows no template.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from llamafactory.rendering.answer_spans import Bit, bits_of, mark
from llamafactory.rendering.encoder import Place, TextEncoder
from llamafactory.rendering.layout import Draft, Item, Layout, Segment, Span
from llamafactory.rendering.mode import Mode
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.tokens import Piece

_MARK_START = mark(0)[0]
_MAX_SHAPES = 256
_MAX_MESSAGES = 64


class Writer(Protocol):
    """Writes a whole conversation into a layout."""

    def write(self, layout: Layout, conversation: Conversation, mode: Mode) -> None: ...


@dataclass(frozen=True, slots=True)
class Hole:
    """A segment that is still to be filled: for each span its text, or the number of a text, or several of both.

    number, at: where one span alone is a text, its number and its place among the spans; -1 elsewhere.
    """

    spans: tuple[tuple[Bit | tuple[Bit, ...], float, bool], ...]
    place: Place
    stop_weight: float
    number: int = -1
    at: int = -1

    def fill(self, texts: Sequence[str]) -> Segment:
        """The segment with `texts` put in."""
        if self.number >= 0:
            spans: list[Span] = [*self.spans]  # type: ignore[list-item]
            _, weight, control = spans[self.at]
            spans[self.at] = (texts[self.number], weight, control)
            return Segment(spans, self.place, self.stop_weight)
        return Segment(
            [(_put(bits, texts), weight, control) for bits, weight, control in self.spans], self.place, self.stop_weight
        )


def _put(bits: Bit | tuple[Bit, ...], texts: Sequence[str]) -> str:
    parts = bits if isinstance(bits, tuple) else (bits,)
    return "".join([texts[bit] if isinstance(bit, int) else bit for bit in parts])


Side = tuple[Piece | Hole, ...]


class Skeletons:
    """Writes conversations, those of a known shape by filling in their texts.

    words: text that is not written as it is where an answer holds it.
    """

    def __init__(
        self, writer: Writer, new_layout: Callable[[], Layout], encoder: TextEncoder, words: Sequence[str]
    ) -> None:
        self._writer = writer
        self._new_layout = new_layout
        self._encoder = encoder
        self._words = tuple(filter(None, (word.strip() for word in words)))
        self._usable = not encoder.eats_left and not encoder.eats_right
        self._shapes: dict[tuple[object, ...], list[tuple[Side, Side]]] = {}

    def drafts(self, conversation: Conversation, mode: Mode) -> list[Draft]:
        """Write a whole conversation. Raises DataError when its messages are out of order or unreadable."""
        messages = conversation.messages
        if not self._usable or len(messages) > _MAX_MESSAGES or not self._is_plain(conversation):
            return self._write(conversation, mode)
        shape = (
            mode, bool(conversation.system), conversation.tools,
            tuple([message.role for message in messages]), tuple([message.loss for message in messages]),
        )  # fmt: skip
        skeleton = self._shapes.get(shape)
        if skeleton is None:
            if len(self._shapes) >= _MAX_SHAPES:
                return self._write(conversation, mode)
            skeleton = self._shapes[shape] = self._skeleton(conversation, mode)
        texts = [conversation.system, *[message.content for message in messages]]
        return [Draft(_fill(source, texts), _fill(target, texts)) for source, target in skeleton]

    def _write(self, conversation: Conversation, mode: Mode) -> list[Draft]:
        layout = self._new_layout()
        self._writer.write(layout, conversation, mode)
        return layout.drafts

    def _is_plain(self, conversation: Conversation) -> bool:
        """True when every text is written as it is."""
        encoder, words = self._encoder, self._words
        for message in conversation.messages:
            text, role = message.content, message.role
            if not text or role == "function" or not encoder.is_plain(text):
                return False
            if role == "assistant":
                for word in words:
                    if word in text:
                        return False
        return encoder.is_plain(conversation.system) and _MARK_START not in conversation.tools

    def _skeleton(self, conversation: Conversation, mode: Mode) -> list[tuple[Side, Side]]:
        """What is written for marks: 0 for the system prompt, then one for each message."""
        messages = [replace(message, content=mark(at)) for at, message in enumerate(conversation.messages, start=1)]
        marked = replace(conversation, messages=tuple(messages), system=mark(0) if conversation.system else "")
        return [(_open(draft.source), _open(draft.target)) for draft in self._write(marked, mode)]


def _open(side: Sequence[Item]) -> Side:
    return tuple(item if isinstance(item, Piece) else _hole(item) for item in side)


def _hole(segment: Segment) -> Hole:
    spans: list[tuple[Bit | tuple[Bit, ...], float, bool]] = []
    for text, weight, control in segment.spans:
        bits = (text,) if control else bits_of(text)
        spans.append((bits[0] if len(bits) == 1 else bits, weight, control))
    texts = [at for at, span in enumerate(spans) if not isinstance(span[0], str)]
    number = spans[texts[0]][0] if len(texts) == 1 else None
    if not isinstance(number, int):
        return Hole(tuple(spans), segment.place, segment.stop_weight)
    return Hole(tuple(spans), segment.place, segment.stop_weight, number, texts[0])


def _fill(side: Side, texts: Sequence[str]) -> list[Item]:
    return [item if isinstance(item, Piece) else item.fill(texts) for item in side]
