"""Thoughts in answers: finding the one an answer begins with, and what each reasoning mode does with it.

Knows thought words as text, no tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

from llamafactory.rendering.markup import Fragments, Markup


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text and the thought before it; `thought` is empty text without its words, None when there is none.

    marked: the answer holds a thought word somewhere, so no empty thought is added to it.
    """

    lead: Fragments
    text: str
    marked: bool

    @property
    def bare(self) -> str:
        """The answer without its thought."""
        return self.text.lstrip("\n") if self.lead else self.text


def split_thought(content: str, words: tuple[str, str]) -> Answer:
    """Split an answer that begins with a thought; the thought's own text stays data."""
    opening, closing = (word.strip() for word in words)
    start = content[: len(content) - len(content.lstrip())]
    end = content.find(closing, len(start) + len(opening)) if content.startswith(opening, len(start)) else -1
    if end < 0:
        return Answer([], content, opening in content or closing in content)
    lead = [start, Markup(opening), content[len(start) + len(opening) : end], Markup(closing)]
    return Answer([part for part in lead if part], content[end + len(closing) :], marked=True)


@dataclass(frozen=True, slots=True)
class ThoughtRule:
    """What happens to one answer.

    drop: its thought is removed. empty: where an empty thought is put when it has none: `prompt` (not learnt),
    `answer` (learnt), or nowhere.
    """

    drop: bool = False
    empty: str = ""


@dataclass(frozen=True, slots=True)
class ThinkingMode:
    """The reasoning options of a run; enable None follows each example."""

    enable: bool | None = True
    preserve: bool = False

    def rule(self, *, last: bool, single_turn: bool, mask_history: bool) -> ThoughtRule:
        """The rule for one answer of a reasoning template.

        single_turn: only the last answer is learnt or made (preference data, prompts). Earlier thoughts then go unless
        preserved, as they do at inference; in multi-turn training they go only when earlier answers are masked.
        """
        side = "answer" if self.enable else "prompt"
        if last:
            return ThoughtRule(drop=self.enable is False, empty=side)
        if single_turn:
            return ThoughtRule(drop=not self.preserve)
        if mask_history and not self.preserve:
            return ThoughtRule(drop=True)
        return ThoughtRule(drop=self.enable is False, empty=side)
