"""Where answers lie in the text of a chat template, told from renderings in which marks stand for messages.

A conversation is rendered with marks, once whole, and for each answer up to its prompt and up to its end. Knows no
message format and no tokenizer but how control tokens are spelled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llamafactory.rendering.encoder import TextEncoder

_MARK = re.compile("\ue0f0([0-9a-f]+)\ue0f1")

Bit = str | int
"""Text of the template, or the number of a message's text."""


@dataclass(frozen=True, slots=True)
class PlanTurn:
    """One prompt and its answer up to the stop token; `stops` is False when the template writes none."""

    source: tuple[Bit, ...]
    target: tuple[Bit, ...]
    stops: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the template's text and the messages' texts lie; `tail` follows the last answer."""

    turns: tuple[PlanTurn, ...]
    tail: tuple[Bit, ...]

    def bits(self) -> Iterator[Bit]:
        """All bits in order."""
        for turn in self.turns:
            yield from turn.source
            yield from turn.target
        yield from self.tail


@dataclass(frozen=True, slots=True)
class AnswerText:
    """Renderings around one answer.

    prompts: the text before it with the generation prompt, as configured and as a thinking model is asked. before: the
    same without generation prompt. answered: the text with the answer as the last message. marks: what stands for its
    texts. called: its end holds tool calls, whose arguments are not marked.
    """

    prompts: tuple[str, ...]
    before: str
    answered: str
    marks: tuple[str, ...]
    called: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Start and end of an answer, and whether a stop token ends it."""

    start: int
    end: int
    stops: bool


def mark(number: int) -> str:
    """What stands for the text of this number."""
    return f"\ue0f0{number:x}\ue0f1"


def bits_of(text: str) -> tuple[Bit, ...]:
    """Cut marked text into the template's text and the numbers of messages' texts."""
    parts = (int(part, 16) if index % 2 else part for index, part in enumerate(_MARK.split(text)))
    return tuple(part for part in parts if part != "")


def make_plan(whole: str, answers: Sequence[AnswerText], encoder: TextEncoder, *, open_end: bool) -> Plan | None:
    """Find every answer in `whole`; None when one cannot be shown. open_end: the last answer is still to be made."""
    turns: list[PlanTurn] = []
    at = 0
    for answer in answers:
        span = _find(whole, at, answer, encoder)
        if span is None or not at <= span.start <= span.end:
            return None
        turns.append(PlanTurn(bits_of(whole[at : span.start]), bits_of(whole[span.start : span.end]), span.stops))
        at = span.end
    if open_end:
        turns.append(PlanTurn(bits_of(whole[at:]), (), stops=True))
        at = len(whole)
    return Plan(tuple(turns), bits_of(whole[at:]))


def _find(whole: str, low: int, answer: AnswerText, encoder: TextEncoder) -> Span | None:
    present = [name for name in answer.marks if name in whole]
    if not present:
        return _find_unmarked(whole, answer, encoder)
    if present[-1] not in answer.answered:
        return None
    first, last = whole.index(present[0]), whole.index(present[-1]) + len(present[-1])
    start = next((len(text) for text in answer.prompts if whole.startswith(text) and len(text) <= first), None)
    if start is None:
        start = _behind_generation_prompt(whole[low:first], answer, encoder)
        start = None if start is None else start + low
    if start is None:
        return None
    behind = answer.answered[answer.answered.index(present[-1]) + len(present[-1]) :]
    return _find_end(whole, start, last, behind, encoder=encoder, called=answer.called)


def _find_end(
    whole: str, start: int, last: int, behind: str, *, encoder: TextEncoder, called: bool
) -> Span | None:  # fmt: skip
    """The end of an answer whose last mark ends at `last`; `behind` is what follows when it is the last message."""
    stop = _to_control(behind, encoder, first=not called)
    if called and behind[len(stop) :].strip():
        stop = ""  # the arguments go on behind the last special token, so none of them ends the calls
    if stop and whole.startswith(stop, last):
        return Span(start, last + len(stop), stops=True)
    if not called:
        return Span(start, last, stops=False)
    rest = _without_last_control(stop, encoder) if stop else behind
    return Span(start, last + len(rest), stops=False) if whole.startswith(rest, last) else None


def _find_unmarked(whole: str, answer: AnswerText, encoder: TextEncoder) -> Span | None:
    start = len(answer.prompts[0])
    if not whole.startswith(answer.prompts[0]) or not answer.answered.startswith(answer.prompts[0]):
        return None
    stop = _to_control(answer.answered[start:], encoder, first=False)
    text = stop or answer.answered[start:]
    return Span(start, start + len(text), bool(stop)) if whole.startswith(text, start) else None


def _behind_generation_prompt(region: str, answer: AnswerText, encoder: TextEncoder) -> int | None:
    """Where an answer begins in the text before its first mark, told from the generation prompt alone.

    For templates that write earlier messages in another form than the last ones. Of a generation prompt that opens a
    thought, earlier answers show only the first part, up to a control token, a line's end or the thought's opening.
    """
    prompt = answer.prompts[0]
    if not prompt.startswith(answer.before) or prompt == answer.before:
        return None
    generation = prompt[len(answer.before) :]
    ends = {len(generation)} | {match.end() for match in re.finditer("\n", generation)}
    at = 0
    for part in encoder.split(generation):
        at += len(part) if isinstance(part, str) else len(encoder.token_text(part))
        ends.add(at)
    opening = generation.find("<think>")
    ends |= {opening} if opening > 0 else set()
    for end in sorted(ends, reverse=True):
        found = region.rfind(generation[:end])
        if end and found >= 0:
            return found + end
    return None


def _to_control(text: str, encoder: TextEncoder, *, first: bool) -> str:
    """`text` up to and with its first (or last) special token; empty when it has none."""
    parts = encoder.split_controls(text)
    places = [index for index, part in enumerate(parts) if isinstance(part, int)]
    if not places:
        return ""
    kept = parts[: (places[0] if first else places[-1]) + 1]
    return "".join(part if isinstance(part, str) else encoder.token_text(part) for part in kept)


def _without_last_control(text: str, encoder: TextEncoder) -> str:
    last = encoder.split_controls(text)[-1]
    return text.removesuffix(encoder.token_text(last)) if isinstance(last, int) else text
