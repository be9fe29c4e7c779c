"""From written parts to turns of pieces: joins text into segments, cuts them where ids or weights part.

A dialect (see `slots.py`, `from_tokenizer.py`) writes control tokens and text into a `Layout`; many layouts are then
encoded together. The prompt and its answer never share a segment, because at inference the prompt stands alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llamafactory.rendering.encoder import Place, TextEncoder
from llamafactory.rendering.markup import Markup
from llamafactory.rendering.tokens import Piece, Turn


@dataclass(slots=True)
class Span:
    """Text with one weight. control: template text, not to be cut."""

    text: str
    weight: float
    control: bool


@dataclass(slots=True)
class Segment:
    """Text between two control tokens, encoded as one. stop_weight: its first token stands for a stop token."""

    spans: list[Span]
    place: Place
    stop_weight: float = 0.0

    @property
    def text(self) -> str:
        return "".join(span.text for span in self.spans)


Item = Piece | Segment


@dataclass(slots=True)
class Draft:
    """A turn whose segments are not encoded yet. Drafts of one prompt with several answers share the source list."""

    source: list[Item] = field(default_factory=list)
    target: list[Item] = field(default_factory=list)


class Layout:
    """Collects one conversation as drafts. stop_ids: tokens that end an answer; eos_id: the one written when none does."""

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
        if self._segment is not None and not all(span.control for span in self._segment.spans):
            self._close()
        self.drafts.append(Draft())
        self._side = self.drafts[-1].source

    def target(self) -> None:
        """Begin the answer; it is encoded on its own."""
        self._close()
        self._eat = False
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
            self._side.append(Piece(ids, weight, control))
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
        if self._segment is None:
            self._segment = Segment([Span(text, weight, control)], self._place, self._unstopped)
            self._unstopped = 0.0
        else:
            last = self._segment.spans[-1]
            if last.weight == weight and last.control == control:
                last.text += text
            else:
                self._segment.spans.append(Span(text, weight, control))
        self._segment_side = self._side

    def _close(self) -> None:
        if self._segment is not None:
            self._segment_side.append(self._segment)
            self._segment = None
            self._place = "text"


def _strip_end(segment: Segment) -> None:
    """Drop blanks at the end of a segment, which the control token behind it swallows."""
    while segment.spans:
        segment.spans[-1].text = segment.spans[-1].text.rstrip()
        if segment.spans[-1].text:
            return
        segment.spans.pop()


def to_turns(groups: Sequence[Sequence[Draft]], encoder: TextEncoder, eos_id: int | None) -> list[list[Turn]]:
    """Encode the segments of all drafts together; drafts that share a source share its pieces."""
    sides = {id(side): side for drafts in groups for draft in drafts for side in (draft.source, draft.target)}
    segments = [item for side in sides.values() for item in side if isinstance(item, Segment)]
    encoded = dict(zip(map(id, segments), _encode(segments, encoder, eos_id), strict=True))
    done = {key: _join(side, encoded) for key, side in sides.items()}
    return [[Turn(done[id(draft.source)], done[id(draft.target)]) for draft in drafts] for drafts in groups]


def _join(side: Iterable[Item], encoded: dict[int, list[Piece]]) -> tuple[Piece, ...]:
    """Pieces of one side in order, neighbours of one kind made one."""
    pieces: list[Piece] = []
    run: list[int] = []
    for item in side:
        for piece in (item,) if isinstance(item, Piece) else encoded[id(item)]:
            last = pieces[-1] if pieces else None
            if last is None or piece.labels or last.labels or _kind(piece) != _kind(last):
                _seal(pieces, run)
                pieces.append(piece)
                run = list(piece.ids)
            else:
                run.extend(piece.ids)
    _seal(pieces, run)
    return tuple(pieces)


def _kind(piece: Piece) -> tuple[float, bool]:
    return piece.weight, piece.control


def _seal(pieces: list[Piece], run: list[int]) -> None:
    if pieces and len(run) != len(pieces[-1].ids):
        pieces[-1] = Piece(tuple(run), pieces[-1].weight, pieces[-1].control)


def _encode(segments: Sequence[Segment], encoder: TextEncoder, eos_id: int | None) -> list[list[Piece]]:
    """Pieces of each segment. Segments whose weights part inside tell their parts from each token's position."""
    found: list[list[Piece]] = [[] for _ in segments]
    whole = []
    split = []
    for index, segment in enumerate(segments):
        if all(span.control for span in segment.spans) and len(segment.spans) == 1:
            span = segment.spans[0]
            found[index] = [Piece(encoder.constant(span.text, segment.place), span.weight, control=True)]
        else:
            (whole if _is_framed(segment.spans) else split).append(index)
    rows = encoder.encode([segments[i].text for i in whole], [segments[i].place for i in whole])
    for index, ids in zip(whole, rows, strict=True):
        found[index] = _frame(segments[index], ids, encoder)
    marked = encoder.encode_with_ends([segments[i].text for i in split], [segments[i].place for i in split])
    for index, tokens in zip(split, marked, strict=True):
        found[index] = _by_position(segments[index], tokens)
    for segment, pieces in zip(segments, found, strict=True):
        if segment.stop_weight and eos_id is not None:
            pieces[:1] = _first_as_stop(pieces[0], segment.stop_weight, eos_id)
    return found


def _is_framed(spans: Sequence[Span]) -> bool:
    """True for one span, or a message's text with template text before or behind it."""
    kinds = [span.control for span in spans]
    return kinds in ([False], [True, False], [False, True], [True, False, True])


def _frame(segment: Segment, ids: list[int], encoder: TextEncoder) -> list[Piece]:
    """Split a framed segment: tokens of the frame that stand alone the same way are control, the rest is text."""
    spans, start, end = segment.spans, 0, len(ids)
    if spans[0].control:
        alone = encoder.constant(spans[0].text, segment.place)
        while start < min(len(alone), end) and alone[start] == ids[start]:
            start += 1
    if spans[-1].control and len(spans) > 1:
        alone = encoder.constant(spans[-1].text, "text")
        while end > start and len(ids) - end < len(alone) and alone[end - len(ids) - 1] == ids[end - 1]:
            end -= 1
    message = next(span for span in spans if not span.control)
    parts = (
        Piece(tuple(ids[:start]), spans[0].weight, control=True),
        Piece(tuple(ids[start:end]), message.weight, control=False),
        Piece(tuple(ids[end:]), spans[-1].weight, control=True),
    )
    return [piece for piece in parts if piece.ids]


def _by_position(segment: Segment, tokens: Sequence[tuple[int, int, int]]) -> list[Piece]:
    """Split a segment by where each token lies; a token over a border belongs to the message's text."""
    bounds, at = [], 0
    for span in segment.spans:
        bounds.append((at, at + len(span.text), span))
        at += len(span.text)
    pieces: list[Piece] = []
    low = 0
    for token, start, end in tokens:
        while low + 1 < len(bounds) and bounds[low][1] <= start:
            low += 1
        touched = [span for first, last, span in bounds[low : low + 3] if first < max(end, start + 1) and last > start]
        span = next((span for span in touched if not span.control), touched[0] if touched else bounds[low][2])
        pieces.append(Piece((token,), span.weight, span.control))
    return list(_join(pieces, {}))


def _first_as_stop(piece: Piece, weight: float, eos_id: int) -> list[Piece]:
    """Let the first token of a piece carry the label of a stop token."""
    first = Piece(piece.ids[:1], weight, control=True, labels=(eos_id,))
    return [first, Piece(piece.ids[1:], piece.weight, piece.control)] if len(piece.ids) > 1 else [first]
