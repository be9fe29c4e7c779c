"""From written parts to turns of pieces: joins text into segments, cuts them where ids or weights part.

A dialect (see `slots.py`, `from_tokenizer.py`) writes control tokens and text into a `Layout`; many layouts are then
encoded together. The prompt and its answer never share a segment, because at inference the prompt stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat

from llamafactory.rendering.encoder import Place, TextEncoder
from llamafactory.rendering.markup import Markup
from llamafactory.rendering.tokens import Piece, Turn

Span = tuple[str, float, bool]
"""Text, its loss weight, and whether it is template text, not to be cut."""


@dataclass(slots=True)
class Segment:
    """Text between two control tokens, encoded as one. stop_weight: its first token stands for a stop token."""

    spans: list[Span]
    place: Place
    stop_weight: float = 0.0

    @property
    def text(self) -> str:
        """The whole text."""
        spans = self.spans
        return spans[0][0] if len(spans) == 1 else "".join([span[0] for span in spans])


Item = Piece | Segment


@dataclass(slots=True)
class Draft:
    """A turn whose segments are not encoded yet. Drafts of one prompt with several answers share the source list."""

    source: list[Item] = field(default_factory=list)
    target: list[Item] = field(default_factory=list)


class Layout:
    """Collects one conversation as drafts.

    stop_ids: tokens that end an answer. eos_id: the one written when a template has none.
    """

    def __init__(self, encoder: TextEncoder, stop_ids: frozenset[int], eos_id: int | None) -> None:
        self.drafts: list[Draft] = []
        self._encoder = encoder
        self._stop_ids = stop_ids
        self._eos_id = eos_id
        self._side: list[Item] = []
        self._segment: Segment | None = None
        self._segment_side: list[Item] = self._side
        self._place: Place = "start"
        self._target_place: Place = "start"
        self._eat = False
        self._unstopped = 0.0

    def source(self) -> None:
        """Begin the next turn's prompt. Template text left open behind an answer joins it, as in the whole string."""
        if self._segment is not None and not all(control for _, _, control in self._segment.spans):
            self._close()
        self.drafts.append(Draft())
        self._side = self.drafts[-1].source

    def target(self) -> None:
        """Begin the answer, encoded on its own. Without any prompt nothing is left to teach an earlier stop with."""
        self._close()
        self._eat = False
        self._unstopped = 0.0
        self._side = self.drafts[-1].target
        self._target_place = self._place

    def alternative(self) -> None:
        """Begin another answer to the same prompt."""
        self.finish()
        self.drafts.append(Draft(source=self.drafts[-1].source))
        self._side = self.drafts[-1].target
        self._place = self._target_place

    def unstopped(self, weight: float) -> None:
        """Note that the answer just written has no stop token: the next token, or an end token, will teach it."""
        self._close()
        self._unstopped = weight

    def finish(self) -> None:
        """Close the last turn."""
        self._close()
        if self._unstopped and self._eos_id is not None:
            self._side.append(Piece((self._eos_id,), self._unstopped, control=True))
        self._unstopped = 0.0

    def ids(self, ids: tuple[int, ...], weight: float, *, control: bool = True) -> None:
        """Write control tokens."""
        if not ids:
            return
        if self._segment is not None:
            if ids[0] in self._encoder.eats_left:
                _strip_end(self._segment)
            self._close()
        if self._unstopped:
            ids = self._teach_stop(ids)
        if ids:
            self._side.append(self._encoder.piece(ids, weight, control))
        self._place = "control"
        self._eat = bool(ids) and ids[-1] in self._encoder.eats_right

    def _teach_stop(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Let the first token of the next prompt teach the previous answer to stop; returns the tokens left over."""
        weight, self._unstopped = self._unstopped, 0.0
        if ids[0] in self._stop_ids:
            self.drafts[-2].target.append(Piece(ids[:1], weight, control=True))
        elif self._eos_id is not None:
            self._side.append(Piece(ids[:1], weight, control=True, labels=(self._eos_id,)))
        else:
            return ids
        return ids[1:]

    def text(self, text: str, weight: float, *, control: bool) -> None:
        """Write text: template text (control) or a message's own."""
        if control:
            self._plain(text, weight, control=True)
            return
        for part in self._encoder.split_data(text):
            if isinstance(part, int):
                self.ids((part,), weight, control=False)
            else:
                self._plain(part, weight, control=False)

    def fragments(self, fragments: Iterable[str], weight: float, *, control: bool = False) -> None:
        """Write a message's text, part of which may be markup whose control tokens count."""
        for fragment in fragments:
            if not isinstance(fragment, Markup):
                self.text(fragment, weight, control=control)
                continue
            for part in self._encoder.split(fragment):
                if isinstance(part, int):
                    self.ids((part,), weight)
                else:
                    self._plain(part, weight, control=control)

    def _plain(self, text: str, weight: float, *, control: bool) -> None:
        if self._eat:
            text = text.lstrip()
        if not text:
            return
        self._eat = False
        segment = self._segment
        if segment is None:
            self._segment = Segment([(text, weight, control)], self._place, self._unstopped)
            self._unstopped = 0.0
        else:
            last, last_weight, last_control = segment.spans[-1]
            if last_weight == weight and last_control == control:
                segment.spans[-1] = (last + text, weight, control)
            else:
                segment.spans.append((text, weight, control))
        self._segment_side = self._side

    def _close(self) -> None:
        segment, self._segment = self._segment, None
        if segment is None or not segment.spans:
            return
        text, weight, control = segment.spans[0]
        if control and len(segment.spans) == 1 and not segment.stop_weight:
            ids = self._encoder.constant(text, segment.place)
            self._segment_side.append(self._encoder.piece(ids, weight, control))
        else:
            self._segment_side.append(segment)
        self._place = "text"


def _strip_end(segment: Segment) -> None:
    """Drop blanks at the end of a segment, which the control token behind it swallows."""
    while segment.spans:
        text, weight, control = segment.spans.pop()
        if text.rstrip():
            segment.spans.append((text.rstrip(), weight, control))
            return


def to_turns(groups: Sequence[Sequence[Draft]], encoder: TextEncoder, eos_id: int | None) -> list[list[Turn]]:
    """Encode the segments of all drafts together; drafts that share a source share its pieces."""
    sides = {id(side): side for drafts in groups for draft in drafts for side in (draft.source, draft.target)}
    segments = [item for side in sides.values() for item in side if isinstance(item, Segment)]
    encoded = dict(zip(map(id, segments), _encode(segments, encoder, eos_id), strict=True))
    done = {key: _join(side, encoded) for key, side in sides.items()}
    return [_turns(drafts, done) for drafts in groups]


def _turns(drafts: Sequence[Draft], done: dict[int, tuple[Piece, ...]]) -> list[Turn]:
    """Drafts as turns, each with the stop that the prompt behind it teaches."""
    sources = [done[id(draft.source)] for draft in drafts]
    stops = [*map(_stop_taught_by, sources[1:]), ()]
    return [
        Turn(source, done[id(draft.target)], stop) for source, draft, stop in zip(sources, drafts, stops, strict=False)
    ]


def _stop_taught_by(source: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """The stop token that a prompt's first token stands for, or none."""
    labels = source[0].labels if source else None
    return (Piece(labels, source[0].weight, control=True),) if labels else ()


def _join(side: Iterable[Item], encoded: dict[int, list[Piece]]) -> tuple[Piece, ...]:
    """Pieces of one side in order."""
    pieces: list[Piece] = []
    for item in side:
        if isinstance(item, Piece):
            pieces.append(item)
        else:
            pieces += encoded[id(item)]
    return tuple(pieces)


def _encode(segments: Sequence[Segment], encoder: TextEncoder, eos_id: int | None) -> list[list[Piece]]:
    """Pieces of each segment. Where kinds part in an irregular way, each token's position tells its part."""
    framed = [_is_framed(segment.spans) for segment in segments]
    if all(framed) and not any(segment.stop_weight for segment in segments):
        ids = encoder.encode([segment.text for segment in segments], [segment.place for segment in segments])
        return list(map(_frame, segments, ids, repeat(encoder)))
    whole = [segment for segment, regular in zip(segments, framed, strict=True) if regular]
    rest = [segment for segment, regular in zip(segments, framed, strict=True) if not regular]
    ids = encoder.encode([segment.text for segment in whole], [segment.place for segment in whole])
    marked = encoder.encode_with_ends([segment.text for segment in rest], [segment.place for segment in rest])
    regulars = map(_frame, whole, ids, repeat(encoder))
    others = map(_by_position, rest, marked)
    found = [next(regulars if regular else others) for regular in framed]
    for segment, pieces in zip(segments, found, strict=True):
        if segment.stop_weight and eos_id is not None:
            pieces[:1] = _first_as_stop(pieces[0], segment.stop_weight, eos_id)
    return found


def _is_framed(spans: Sequence[Span]) -> bool:
    """True for a message's text alone, or with template text before or behind it."""
    if len(spans) == 1:
        return not spans[0][2]
    if len(spans) == 2:
        return spans[0][2] != spans[1][2]
    return len(spans) == 3 and spans[0][2] and not spans[1][2] and spans[2][2]


def _frame(segment: Segment, ids: list[int], encoder: TextEncoder) -> list[Piece]:
    """Split a framed segment: tokens of the frame that stand alone the same way are control, the rest is text."""
    spans = segment.spans
    if len(spans) == 1:
        return [Piece(tuple(ids), spans[0][1], control=False)]
    start, end = 0, len(ids)
    before = behind = None
    if spans[0][2]:
        alone, before = encoder.frame(spans[0][0], segment.place, spans[0][1])
        start = len(alone)
        if ids[:start] != alone:
            differ = (at for at, pair in enumerate(zip(ids, alone, strict=False)) if pair[0] != pair[1])
            start = next(differ, min(len(ids), len(alone)))
            before = encoder.piece(tuple(ids[:start]), spans[0][1], True) if start else None
    if spans[-1][2]:
        alone, behind = encoder.frame(spans[-1][0], "text", spans[-1][1])
        while end > start and len(ids) - end < len(alone) and alone[end - len(ids) - 1] == ids[end - 1]:
            end -= 1
        if len(ids) - end < len(alone):
            behind = encoder.piece(tuple(ids[end:]), spans[-1][1], True) if end < len(ids) else None
    message = Piece(tuple(ids[start:end]), (spans[1] if spans[0][2] else spans[0])[1], False) if end > start else None
    return [piece for piece in (before, message, behind) if piece is not None]


def _by_position(segment: Segment, tokens: Sequence[tuple[int, int, int]]) -> list[Piece]:
    """Split a segment by where each token lies; a token over a border belongs to the message's text."""
    bounds: list[tuple[int, Span]] = []
    for span in segment.spans:
        bounds.append((len(span[0]) + (bounds[-1][0] if bounds else 0), span))
    pieces: list[Piece] = []
    low, run = 0, 0
    kinds = []
    for _, start, end in tokens:
        while low + 1 < len(bounds) and bounds[low][0] <= start:
            low += 1
        high = low
        while high + 1 < len(bounds) and bounds[high][0] < end:
            high += 1
        touched = [span for _, span in bounds[low : high + 1]]
        span = next((span for span in touched if not span[2]), touched[0])
        kinds.append(span[1:])
    for index in range(1, len(tokens) + 1):
        if index == len(tokens) or kinds[index] != kinds[run]:
            pieces.append(Piece(tuple(token for token, _, _ in tokens[run:index]), *kinds[run]))
            run = index
    return pieces


def _first_as_stop(piece: Piece, weight: float, eos_id: int) -> list[Piece]:
    """Let the first token of a piece carry the label of a stop token."""
    first = Piece(piece.ids[:1], weight, control=True, labels=(eos_id,))
    return [first, Piece(piece.ids[1:], piece.weight, piece.control)] if len(piece.ids) > 1 else [first]
