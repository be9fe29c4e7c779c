"""Rows -> records -> turns -> examples, a chunk of rows at a time.

An Encoder is a value: the same object works in this process and in worker processes. Knows no file and no trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.examples import Chunk, Example
from llamafactory.data.formats import FORMATS
from llamafactory.data.kinds import Kind
from llamafactory.data.latest import Render, keep_latest
from llamafactory.data.report import EMPTY, NO_SUPERVISION, TOO_LONG, Report
from llamafactory.data.sources import NamedRow
from llamafactory.data.truncate import cut_end, cut_prompt, share, truncate
from llamafactory.errors import DataError
from llamafactory.rendering.records import Conversation, Feedback, Preference, Prompt, Record, Text
from llamafactory.rendering.tokens import Piece, Turn, join


class Renderer(Protocol):
    """What encoding needs of the renderer."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same record may yield other tokens."""
        ...

    def encode(
        self, records: Sequence[Record], *, train_on_prompt: bool = False, mask_history: bool = False
    ) -> list[list[Turn]]:
        """Tokenize records in one batch; one list of turns for each.

        A Preference yields two turns with the same prompt, chosen first; Text, Feedback and Prompt one turn.
        """
        ...

    def note(self, record: Record) -> str:
        """What a user should know about how a record is rendered, or nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How examples are masked and cut. limit: most tokens of one example, None for no limit."""

    limit: int | None
    truncation: str = "balanced"
    train_on_prompt: bool = False
    mask_history: bool = False


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes chunks of rows of one data set."""

    entry: DatasetEntry
    kind: Kind
    renderer: Renderer
    limits: Limits

    def __call__(self, rows: Sequence[NamedRow]) -> Chunk:
        """Encode a chunk. Bad rows and dropped examples are counted in its report; a too long one may raise "
        "DataError."""
        report = Report()
        records = to_records(rows, self.entry, self.kind, report)
        rendered = self._render(records, report)
        encode = _ENCODERS.get(self.kind) or partial(_single, render=self._render_alone)
        examples = []
        for place, (record, turns) in enumerate(rendered):
            if note := self.renderer.note(record):
                report.note(note, record.source)
            example = encode(record, turns, self.limits)
            if example is not None and self.kind == "feedback":
                example.columns |= _mismatched(turns, [] if len(rendered) == 1 else rendered[place - 1][1], self.limits)
            if example is None:
                report.drop(TOO_LONG, record.source)
            elif not example.num_supervised and self.kind != "prompt":
                report.drop(NO_SUPERVISION, record.source)
            else:
                examples.append(example)
                _count(example, self.kind, report)
        return Chunk(examples, report)

    def _render(self, records: list[Record], report: Report) -> list[tuple[Record, list[Turn]]]:
        """Tokenize all records in one batch; if it refuses one of them, one by one to find out which."""
        try:
            return list(zip(records, self._encode(records), strict=True))
        except DataError:
            rendered = []
            for record in records:
                try:
                    rendered.append((record, self._encode([record])[0]))
                except DataError as error:
                    named = str(error) if record.source in str(error) else f"{record.source}: {error}"
                    report.reject(DataError(named))
            return rendered

    def _render_alone(self, conversation: Conversation) -> list[Turn]:
        return self._encode([conversation])[0]

    def _encode(self, records: Sequence[Record]) -> list[list[Turn]]:
        limits = self.limits
        return self.renderer.encode(records, train_on_prompt=limits.train_on_prompt, mask_history=limits.mask_history)


def to_records(rows: Iterable[NamedRow], entry: DatasetEntry, kind: Kind, report: Report) -> list[Record]:
    """Convert rows, counting bad and empty ones in `report`."""
    to_record = FORMATS.load(entry.formatting).to_record
    records: list[Record] = []
    for source, row in rows:
        report.read += 1
        try:
            if isinstance(row, DataError):
                raise row
            record = to_record(row, entry, source, stage_kind=kind)
        except DataError as error:
            report.reject(error)
            continue
        if isinstance(record, Text) and not record.text:
            report.drop(EMPTY, source)
        else:
            _refuse_media(record)
            records.append(record)
    return records


def _refuse_media(record: Record) -> None:
    """Images, videos and audio have no tokens yet; learning their placeholders as text would be silently wrong."""
    if isinstance(record, Text):
        return
    talk = record if isinstance(record, Conversation) else _conversation(record)
    if talk.media:
        raise DataError(
            f"{record.source}: the row has images, videos or audios, which this version cannot turn into tokens, so "
            "they would be lost; use a text data set"
        )


def _conversation(record: Preference | Feedback | Prompt) -> Conversation:
    return record.prompt if isinstance(record, Preference) else record.conversation


def _single(record: Record, turns: list[Turn], limits: Limits, render: Render) -> Example | None:
    fitted, truncated = _fit(record, turns, limits, render)
    if not fitted:
        return None
    tokens = join(piece for turn in fitted for piece in (*turn.source, *turn.target))
    desirable = record.desirable if isinstance(record, Feedback) else None
    columns = {"input_ids": tokens.input_ids, "labels": tokens.labels}
    return Example(record.source, columns, tokens.weights, desirable, truncated)


def _mismatched(turns: list[Turn], other: list[Turn], limits: Limits) -> dict[str, list[int]]:
    """Columns of the prompt with the answer of another example, for the KL term of KTO; without one, of no answer."""
    pieces: Sequence[Piece] = [*turns[-1].source, *other[-1].target] if other else turns[-1].source
    if limits.limit is not None and other:
        fitted = truncate([Turn(turns[-1].source, other[-1].target)], limits.limit, "balanced").turns
        pieces = [piece for turn in fitted for piece in (*turn.source, *turn.target)] or turns[-1].source
    tokens = join(pieces)
    return {"kl_input_ids": tokens.input_ids[: limits.limit], "kl_labels": tokens.labels[: limits.limit]}


def _prompt(record: Record, turns: list[Turn], limits: Limits) -> Example | None:
    """A prompt may have no reference answer; then it has the whole limit for itself."""
    if turns[0].target:
        fitted, truncated = _fit(record, turns, limits)
    else:
        source = turns[0].source if limits.limit is None else cut_prompt(turns[0].source, limits.limit)
        fitted, truncated = [Turn(source, ())], len(_ids(source)) < len(turns[0])
    if not fitted:
        return None
    columns = {"input_ids": _ids(fitted[0].source), "labels": _ids(fitted[0].target)}
    return Example(record.source, columns, truncated=truncated)


def _pair(record: Record, turns: list[Turn], limits: Limits) -> Example | None:
    """Cut both answers alike: the longer one decides how the limit is shared with the prompt."""
    prompt, answers = turns[0].source, [turn.target for turn in turns]
    longest = max(turns, key=len)
    limit = limits.limit
    truncated = limit is not None and len(longest) > limit
    if limit is not None and truncated:
        if limits.truncation in {"drop", "error"}:
            truncate([longest], limit, limits.truncation, name=record.source)
            return None
        room = share(len(_ids(prompt)), max(len(_ids(answer)) for answer in answers), limit)
        prompt = cut_prompt(prompt, room[0])
        answers = [cut_end(answer, min(room[1], limit - len(_ids(prompt)))) for answer in answers]
        if not all(answers):
            return None
    columns: dict[str, list[int]] = {}
    for side, answer in zip(("chosen", "rejected"), answers, strict=True):
        tokens = join((*prompt, *answer))
        columns[f"{side}_input_ids"] = tokens.input_ids
        columns[f"{side}_labels"] = tokens.labels
    return Example(record.source, columns, truncated=truncated)


_ENCODERS = {"preference": _pair, "prompt": _prompt}


def _fit(
    record: Record, turns: list[Turn], limits: Limits, render: Render | None = None
) -> tuple[Sequence[Turn], bool]:
    limit, policy = limits.limit, limits.truncation
    if limit is None or sum(map(len, turns)) <= limit:
        return turns, False
    from_end = policy == "prompt" or (limits.mask_history and policy in {"balanced", "tail"})
    cut = None
    if from_end and render is not None and isinstance(record, Conversation) and len(turns) > 1 and not record.media:
        cut = keep_latest(record, turns, limit, policy, render)
    if cut is None:
        cut = truncate(turns, limit, policy, keep_last=limits.mask_history, name=record.source)
    return cut.turns, cut.truncated


def _ids(pieces: Iterable[Piece]) -> list[int]:
    return [token for piece in pieces for token in piece.ids]


def _count(example: Example, kind: Kind, report: Report) -> None:
    report.kept += 1
    report.tokens += example.num_tokens
    report.supervised += example.num_supervised if kind != "prompt" else 0
    if example.truncated:
        report.truncated.add(example.source)
