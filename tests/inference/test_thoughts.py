"""Thoughts and answers, however the text is cut into pieces."""

from __future__ import annotations

import pytest

from llamafactory.inference.thoughts import ThoughtSplitter

DEEP = ("<think>\n", "\n</think>\n\n")


def split(text: str, size: int, *, started: bool = False) -> tuple[str, str]:
    splitter = ThoughtSplitter(DEEP, started=started)
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    shown = [found for piece in pieces for found in splitter.push(piece)] + list(splitter.finish())
    return "".join(s.text for s in shown if s.is_thought), "".join(s.text for s in shown if not s.is_thought)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nab <c\n</think>\n\nYes.\n\nNo.", ("ab <c\n", "Yes.\n\nNo.")),
        ("\n<think></think>Yes", ("", "Yes")),
        ("Yes <think>no</think>", ("", "Yes <think>no</think>")),
        ("<thin air", ("", "<thin air")),
        ("<think>\nnever ends </thi", ("never ends </thi", "")),
        ("", ("", "")),
        ("\n\n hello", ("", "\n\n hello")),
    ],
)
def test_a_thought_is_told_from_the_answer(size: int, text: str, expected: tuple[str, str]) -> None:
    assert split(text, size) == expected


@pytest.mark.parametrize("size", [1, 4, 100])
def test_a_prompt_may_open_the_thought(size: int) -> None:
    assert split("so\n</think>\n\nYes", size, started=True) == ("so\n", "Yes")


def test_an_answer_is_not_held_back() -> None:
    splitter = ThoughtSplitter()
    assert [shown.text for shown in splitter.push("He")] == ["He"]
    assert [shown.text for shown in splitter.push("llo <th")] == ["llo <th"]
