"""Making an example fit: cutting turns to a token limit without ever splitting the template's own tokens.

A truncated answer ends where it was cut: the stop token that followed it is dropped with the rest, so no false ending
is learnt. A whole one learns to stop, by a stop token of its own (`Turn.stop`) if the one that would have taught it is
dropped. Knows turns and pieces, not the text they came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from llamafactory.errors import DataError
from llamafactory.rendering.tokens import Piece, Turn

POLICIES = ("balanced", "tail", "prompt", "drop", "error")


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of an example: its turns (none when it was dropped) and whether anything was cut."""

    turns: tuple[Turn, ...]
    truncated: bool


def share(source: int, target: int, limit: int) -> tuple[int, int]:
    """Split `limit` tokens between a prompt and its answer, in proportion to their lengths when both are long.

    A short answer (under half of the limit) is kept whole, else a short prompt is.
    """
    if 2 * target < limit:
        most = limit
    elif 2 * source < limit:
        most = limit - source
    else:
        most = int(limit * target / (source + target))
    kept = min(most, target)
    return min(max(limit - kept, 0), source), kept


def truncate(turns: Sequence[Turn], limit: int, policy: str, *, keep_last: bool = False, name: str = "") -> Cut:
    """Fit `turns` into `limit` tokens.

    balanced: each turn shares what is left between prompt and answer (`share`); turns that no longer fit are dropped.
    tail: whole turns from the start, later ones dropped; a first turn that is too long loses the end of its answer.
    prompt: answers stay whole; the oldest turns are dropped, then the last prompt loses text.
    drop, error: no cutting. keep_last: begin with the last turn (`mask_history`). name: "file:row" for messages.

    Raises DataError under `error` when the example is too long.
    """
    length = sum(map(len, turns))
    if length <= limit:
        return Cut(tuple(turns), truncated=False)
    if policy == "error":
        raise DataError(
            f"{name}: the example has {length} tokens, more than cutoff_len {limit}, and truncation is 'error'; "
            "raise cutoff_len, shorten the example, or choose another truncation"
        )
    if policy == "drop":
        return Cut((), truncated=True)
    if policy == "prompt":
        return Cut(_forget_stops(_keep_answers(turns, limit)), truncated=True)
    cut = _cut_balanced if policy == "balanced" else _cut_tail
    if keep_last:
        kept, _ = _fill(turns[::-1], limit, partial(_cut_inside, cut))
        return Cut(_forget_stops(kept[::-1]), truncated=True)
    return Cut(tuple(_end(*_fill(turns, limit, cut), cut)), truncated=True)


CutTurn = Callable[[Turn, int, bool], Turn | None]
"""`cut(turn, room, first)` shortens a turn to `room` tokens, its stop token included; None when too little is left."""


def _fill(turns: Sequence[Turn], limit: int, cut: CutTurn) -> tuple[list[Turn], int]:
    """Take turns in order while tokens are left, the one that does not fit shortened; and the tokens left over."""
    kept: list[Turn] = []
    room = limit
    for turn in turns:
        short = turn if len(turn) <= room else cut(turn, room, not kept)
        if short is None:
            break
        kept.append(short)
        room -= len(short)
        if short is not turn:
            break
    return kept, room


def _end(kept: list[Turn], room: int, cut: CutTurn) -> list[Turn]:
    """Write out the stop of a last turn whose next prompt was dropped; a turn without room for it is cut or dropped."""
    while kept and kept[-1].stop:
        last = kept.pop()
        room += len(last)
        short = Turn(last.source, (*last.target, *last.stop)) if len(last) < room else cut(last, room, not kept)
        if short is not None:
            kept.append(short)
    return kept


def _cut_inside(cut: CutTurn, turn: Turn, room: int, first: bool) -> Turn | None:
    """Shorten a turn that others follow: the next prompt still teaches its stop, if its answer is whole."""
    short = cut(replace(turn, stop=()), room, first)
    return replace(short, stop=turn.stop) if short is not None and short.target == turn.target else short


def _forget_stops(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Unlearn the stop that the first token of a prompt teaches when the answer before it was dropped or cut."""
    kept = []
    whole = False
    for turn in turns:
        if turn.source and turn.source[0].labels and not whole:
            first = replace(turn.source[0], weight=0.0, labels=None)
            turn = replace(turn, source=(first, *turn.source[1:]))
        kept.append(turn)
        whole = bool(turn.stop)
    return tuple(kept)


def _cut_balanced(turn: Turn, room: int, first: bool) -> Turn | None:
    answer = (*turn.target, *turn.stop)
    source, target = share(_length(turn.source), _length(answer), room)
    fixed = _control_length(turn.source)
    if source < fixed:
        source, target = fixed, room - fixed
    return _shorten(turn, source, target)


def _cut_tail(turn: Turn, room: int, first: bool) -> Turn | None:
    source = _length(turn.source)
    return _shorten(turn, source, room - source) if first else None


def _shorten(turn: Turn, source: int, target: int) -> Turn | None:
    """Cut the sides to these lengths. An answer short of nothing but its `stop` gets it for a token of the prompt.

    A prompt without text has none to give; then the answer loses a token instead, so that it is not whole.
    """
    if turn.stop and target == _length(turn.target):
        spare = source > _control_length(turn.source)
        source, target = (source - 1, target + 1) if spare else (source, target - 1)
    answer = cut_end((*turn.target, *turn.stop), target) if target > 0 else ()
    return Turn(cut_prompt(turn.source, source), answer) if answer else None


def _keep_answers(turns: Sequence[Turn], limit: int) -> tuple[Turn, ...]:
    kept: list[Turn] = []
    room = limit
    for turn in reversed(turns):
        if len(turn) > room:
            break
        kept.append(turn)
        room -= len(turn)
    if kept:
        return tuple(reversed(kept))
    left = limit - _length(turns[-1].target)
    if left < _control_length(turns[-1].source):
        return ()
    return (replace(turns[-1], source=cut_prompt(turns[-1].source, left)),)


def cut_prompt(pieces: Sequence[Piece], limit: int) -> tuple[Piece, ...]:
    """Shorten a prompt to `limit` tokens: every control piece stays, texts lose their ends, the longest texts first.

    A short question behind a long document, or under a long list of tools, thus stays whole.
    """
    texts = sorted(len(piece.ids) for piece in pieces if not piece.control)
    room = max(limit - _control_length(pieces), 0)
    most, extra = _level(texts, room)
    kept = []
    for piece in pieces:
        if piece.control or len(piece.ids) <= most:
            kept.append(piece)
            continue
        longer = 1 if extra > 0 else 0
        extra -= longer
        kept.append(replace(piece, ids=piece.ids[: most + longer]))
    return tuple(piece for piece in kept if piece.ids)


def _level(lengths: Sequence[int], room: int) -> tuple[int, int]:
    """The length at which to cut texts (given ascending) so that they fill `room`; and how many may be one longer."""
    for index, length in enumerate(lengths):
        level, extra = divmod(room, len(lengths) - index)
        if length > level:
            return level, extra
        room -= length
    return (lengths[-1] if lengths else 0), 0


def cut_end(pieces: Iterable[Piece], limit: int) -> tuple[Piece, ...]:
    """The first `limit` tokens of an answer; a control piece that does not fit whole ends it."""
    kept = []
    room = limit
    for piece in pieces:
        if len(piece.ids) > room:
            if not piece.control and room > 0:
                kept.append(replace(piece, ids=piece.ids[:room]))
            break
        kept.append(piece)
        room -= len(piece.ids)
    return tuple(kept)


def _length(pieces: Iterable[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces)


def _control_length(pieces: Iterable[Piece]) -> int:
    return sum(len(piece.ids) for piece in pieces if piece.control)
