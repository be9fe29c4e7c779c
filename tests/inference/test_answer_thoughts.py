"""Thoughts and answers, however the text is cut into pieces."""

from __future__ import annotations

import pytest

from llamafactory.inference.answer_parts import ThoughtReader
from llamafactory.rendering.chat_messages import THINK


def split(text: str, size: int, *, started: bool = False) -> tuple[str, str]:
    reader = ThoughtReader(THINK, begun=started)
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    found = [*(reader.push(piece) for piece in pieces), reader.finish()]
    return "".join(thought for thought, _ in found), "".join(said for _, said in found)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nab <c\n</think>\n\nYes.\n\nNo.", ("ab <c", "Yes.\n\nNo.")),
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
    assert split("so\n</think>\n\nYes", size, started=True) == ("so", "Yes")


def test_an_answer_is_not_held_back() -> None:
    reader = ThoughtReader(THINK)
    assert reader.push("He") == ("", "He")
    assert reader.push("llo <th") == ("", "llo <th")
