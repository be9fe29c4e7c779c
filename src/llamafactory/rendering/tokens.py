"""What rendering yields: tokens grouped into turns, each piece with its loss weight and kind.

Ids and weights are decided together, in the renderer; nothing later searches for answers in a token stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens that share a loss weight.

    control: part of the template (role headers, stop tokens, media runs), which truncation keeps whole or drops whole.
    weight: 0.0 means not supervised. labels: what is learnt in place of `ids`, on control pieces of templates whose
    answers carry no stop token (the first token of the next prompt then teaches the end token); None means the ids.
    """

    ids: tuple[int, ...]
    weight: float
    control: bool
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt part (system, user, tool results, generation prompt) and the answer that follows it.

    stop: not part of the turn. Where the first token of the next prompt teaches this answer to stop, the end token that
    takes over when that prompt is dropped.
    """

    source: tuple[Piece, ...]
    target: tuple[Piece, ...]
    stop: tuple[Piece, ...] = ()

    def __len__(self) -> int:
        return sum(len(piece.ids) for piece in (*self.source, *self.target))


@dataclass(frozen=True, slots=True)
class Tokens:
    """One example. All sequences have length T; `labels` is IGNORE_INDEX where nothing is learnt.

    weights: None when every supervised token weighs 1.
    """

    input_ids: list[int]
    labels: list[int]
    weights: list[float] | None = None

    @property
    def num_supervised(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)


def join(pieces: Iterable[Piece]) -> Tokens:
    """Concatenate pieces in order into one example."""
    ids: list[int] = []
    labels: list[int] = []
    weighted = False
    kept = [piece for piece in pieces if piece.ids]
    for piece in kept:
        ids += piece.ids
        if piece.weight:
            labels += piece.labels or piece.ids
            weighted = weighted or piece.weight != 1.0
        else:
            labels += [IGNORE_INDEX] * len(piece.ids)
    if not weighted:
        return Tokens(ids, labels)
    return Tokens(ids, labels, [piece.weight for piece in kept for _ in piece.ids])
