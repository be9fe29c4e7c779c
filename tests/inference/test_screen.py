"""Answers on a terminal that can draw, read back as the text a person would see."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from llamafactory.inference.answer_parts import Shown
from llamafactory.inference.screen import MarkdownScreen, PlainScreen, console_for, split_blocks

ANSWER = "# Hel|lo\n\nA **bo|ld** [here](http://far.example)\n|\n```python\nx = 1\n\ny| = 2\n```\n\n- one\n- tw|o"


def drawn(*pieces: Shown) -> str:
    """What stands on the screen in the end: lines that were redrawn count once."""
    target = io.StringIO()
    screen = MarkdownScreen(Console(file=target, force_terminal=True, width=40, color_system="standard"))
    for piece in pieces:
        screen.add(piece)
    screen.close()
    return target.getvalue()


def seen(codes: str) -> list[str]:
    """The lines a terminal shows for these codes; knows those that rich writes."""
    lines, row = [""], 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", codes):
        if part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1] or 1)
        elif part == "\n":
            row += 1
            lines += [""] * (row - len(lines) + 1)
        elif part == "\r" or part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] += part
    return [line.strip() for line in lines if line.strip()]


def test_markdown_is_drawn_block_by_block() -> None:
    codes = drawn(*map(Shown, ANSWER.split("|")))
    expected = ["Hello", "A bold here (http://far.example)", "x = 1", "y = 2", "• one", "• two"]
    assert seen(codes) == expected
    assert "\x1b[1mbold\x1b[0m" in codes and "\x1b]8" not in codes


def test_thoughts_are_dimmed_and_apart() -> None:
    codes = drawn(Shown("hm, ", True), Shown("\x1b[31mwell", True), Shown("Yes."))
    assert "\x1b[2;3mhm, \x1b[0m\x1b[2;3m[31mwell\x1b[0m\n\n" in codes
    assert seen(codes)[-1] == "Yes."


def test_control_characters_of_an_answer_are_inert() -> None:
    assert "\x1b]0;" not in drawn(Shown("a\x1b]0;title\x07b\x9b2J"))


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("a\n\nb", "a\n\n"),
        ("a\nb\n", ""),
        ("```\na\n\nb", ""),
        ("```\na\n```\n\nb", "```\na\n```\n\n"),
        ("a\n\n", "a\n\n"),
    ],
)
def test_a_block_ends_at_an_empty_line_outside_code(text: str, done: str) -> None:
    assert split_blocks(text) == (done, text[len(done) :])


def test_a_plain_screen_writes_everything_at_once() -> None:
    target = io.StringIO()
    screen = PlainScreen(target)
    for piece in (Shown("hm", True), Shown("Yes\x08.")):
        screen.add(piece)
    screen.close()
    assert target.getvalue() == "hm\n\nYes.\n"
    assert console_for(target) is None
