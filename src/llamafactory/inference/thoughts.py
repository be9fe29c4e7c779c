"""Telling the thought of a streamed answer from what follows it.

Knows the two words around a thought as text; a word may be spread over several pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

THINK = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Shown:
    """A piece of an answer, without the words around a thought."""

    text: str
    is_thought: bool = False


class ThoughtSplitter:
    """Cuts a stream of text into thought and answer; the pieces joined are all of the text but the two words.

    Only an answer that begins with a thought has one. started: the prompt ended with the opening word.
    """

    def __init__(self, words: tuple[str, str] = THINK, *, started: bool = False) -> None:
        self._opening, self._closing = (word.strip() for word in words)
        self._place: Literal["start", "thought", "answer"] = "thought" if started else "start"
        self._gap = False  # line breaks behind a word belong to it
        self._held = ""

    def push(self, text: str) -> Iterator[Shown]:
        """Add text; yields what is certain."""
        self._held += text
        place = ""
        while place != self._place:
            place = self._place
            if self._gap:
                self._held = self._held.lstrip("\n")
                self._gap = not self._held
            yield from self._step()

    def finish(self) -> Iterator[Shown]:
        """Yield what was held back."""
        held, self._held = self._held, ""
        if held:
            yield Shown(held, is_thought=self._place == "thought")

    def _step(self) -> Iterator[Shown]:
        if self._place == "start":
            bare = self._held.lstrip()
            if bare.startswith(self._opening):
                self._place, self._gap, self._held = "thought", True, bare[len(self._opening) :]
            elif not self._opening.startswith(bare):
                self._place = "answer"
        elif self._place == "thought":
            text, closed, rest = self._held.partition(self._closing)
            if closed:
                self._place, self._gap, self._held = "answer", True, rest
            else:
                text, self._held = _split_held(self._held, self._closing)
            if text:
                yield Shown(text, is_thought=True)
        elif self._held:
            text, self._held = self._held, ""
            yield Shown(text)


def _split_held(text: str, word: str) -> tuple[str, str]:
    """The text, and the part of its end that may be the beginning of `word`."""
    for length in range(min(len(word) - 1, len(text)), 0, -1):
        if word.startswith(text[-length:]):
            return text[:-length], text[-length:]
    return text, ""
