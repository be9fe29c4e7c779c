"""How an answer looks in a terminal: its Markdown drawn block by block, its thought dimmed; or plainly as it comes.

Knows a stream to write to. Text of a model never steers the terminal: control characters are taken out first.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from llamafactory.inference.answer_parts import Shown

_FENCES = ("```", "~~~")


def strip_controls(text: str) -> str:
    """Remove the characters that steer a terminal (escape, carriage return, backspace ...); newlines and tabs stay."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


class Screen(Protocol):
    """Shows the pieces of one answer."""

    def add(self, piece: Shown) -> None:
        """Show a piece."""
        ...

    def close(self) -> None:
        """End the answer, on a line of its own."""
        ...


class PlainScreen:
    """Text as it comes, thoughts too."""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._last: Shown | None = None

    def add(self, piece: Shown) -> None:
        """Write a piece at once; a thought and its answer are kept apart by an empty line."""
        text = strip_controls(piece.text)
        if self._last is not None and self._last.is_thought and not piece.is_thought:
            text = f"\n\n{text}"
        if text:
            self._last = Shown(text, piece.is_thought)
            self._target.write(text)
            self._target.flush()

    def close(self) -> None:
        """End the line."""
        if self._last is None or not self._last.text.endswith("\n"):
            self._target.write("\n")
            self._target.flush()


class MarkdownScreen:
    """Finished blocks as Markdown, the block being written redrawn in place, thoughts dimmed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._block = ""
        self._thinks = False
        self._live: Live | None = None

    def add(self, piece: Shown) -> None:
        """Show a piece."""
        text = strip_controls(piece.text)
        if piece.is_thought:
            self._thinks = True
            self._console.print(Text(text, style="dim italic"), end="", soft_wrap=True)
            return
        if self._thinks:
            self._thinks = False
            self._console.print("\n")
        self._block += text
        done, self._block = split_blocks(self._block)
        if done:
            self._drop_live()
            self._print(done)
            self._console.print()
        if self._block.strip():
            self._show_live()

    def close(self) -> None:
        """Draw the last block for good."""
        self._drop_live()
        if self._thinks:
            self._console.print()
        if self._block.strip():
            self._print(self._block)
        self._block, self._thinks = "", False

    def _print(self, text: str) -> None:
        # Links are spelled out: a hidden address would be the model's choice.
        self._console.print(Markdown(text, hyperlinks=False), end="")

    def _show_live(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="ellipsis")
            self._live.start()
        self._live.update(Markdown(self._block, hyperlinks=False), refresh=True)

    def _drop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def split_blocks(text: str) -> tuple[str, str]:
    """The Markdown blocks that are complete (an empty line follows, outside code), and the rest."""
    end = place = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        place += len(line)
        bare = line.strip()
        if fence:
            fence = "" if bare.startswith(fence) else fence
        elif bare.startswith(_FENCES):
            fence = bare[:3]
        elif not bare and line.endswith("\n"):
            end = place
    return text[:end], text[end:]


@contextmanager
def answer_screen(target: TextIO, console: Console | None) -> Iterator[Screen]:
    """A screen for one answer: drawn where there is a console that can, else plain. Closed whatever happens."""
    screen: Screen = PlainScreen(target) if console is None else MarkdownScreen(console)
    try:
        yield screen
    finally:
        screen.close()


def console_for(target: TextIO) -> Console | None:
    """A console for a terminal that can redraw lines; None for anything else."""
    console = Console(file=target)
    return console if console.is_terminal and not console.is_dumb_terminal else None
