"""Streaming: examples are read and tokenized while training, from any source, with any number of loader workers.

Every loader worker reads its own share of the rows, so one file is enough for many workers. Knows no trainer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from llamafactory import env
from llamafactory.config.run import RunConfig
from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.encode import Encoder, Renderer
from llamafactory.data.examples import schema_of, to_batch
from llamafactory.data.mix import mix
from llamafactory.data.pack import PACKED_SCHEMA, pack
from llamafactory.data.plan import Plan, open_rows
from llamafactory.data.report import Report
from llamafactory.data.sources import Rows
from llamafactory.errors import DataError
from llamafactory.logs import get_logger, notice

_LOGGER = get_logger(__name__)
_PATIENCE = 5000


@dataclass(frozen=True)
class Stream:
    """The examples of one data set, as a generator over shares of its rows.

    window: rows tokenized, and packed, together. skip_bad: leave bad rows out instead of raising. packs: token limit of
    a packed row, or None. held_out: row names that belong to the validation set.
    """

    rows: Rows
    encoder: Encoder
    window: int
    skip_bad: bool
    packs: int | None = None
    held_out: frozenset[str] = frozenset()

    @property
    def schema(self) -> pa.Schema:
        return PACKED_SCHEMA if self.packs else schema_of(self.encoder.kind)

    def read(self, part: int = 0, num_parts: int = 1) -> Iterator[dict[str, object]]:
        """Yield the examples of one share of the rows as plain rows."""
        batches = self.encoded(part, num_parts)
        if self.packs is not None:
            batches = pack(batches, self.encoder.kind, self.packs)
        for batch in batches:
            yield from batch.to_pylist()

    def encoded(self, part: int = 0, num_parts: int = 1) -> Iterator[pa.RecordBatch]:
        """Yield the unpacked examples of one share of the rows."""
        total = Report()
        name = self.encoder.entry.name
        rows = (named for named in self.rows.read(part, num_parts) if named[0] not in self.held_out)
        while chunk := list(itertools.islice(rows, self.window)):
            encoded = self.encoder(chunk)
            total.merge(encoded.report)
            for note in encoded.report.notes:
                notice(f"{name}: {note}")
            if not self.skip_bad:
                total.raise_if_bad(name)
            if encoded.examples:
                yield to_batch(encoded.examples, self.encoder.kind)
            elif total.read >= _PATIENCE:
                total.raise_if_empty(name)
        if total.read and self.encoder.kind != "prompt":
            total.raise_if_empty(name)
        if total.num_bad or total.num_dropped:
            _LOGGER.warning("%s: %s", name, total.line())


def stream_train(config: RunConfig, plan: Plan, renderer: Renderer) -> tuple[IterableDataset | None, Dataset | None]:
    """Build the shuffled training stream and, with an integer val_size, a validation set held out of its beginning.

    The validation examples are drawn at random from the first 10 x val_size examples (at most buffer_size) and never
    come up in training, in any epoch. Raises DataError for options that a stream cannot honour.
    """
    _check(config, plan)
    streams = [_stream(config, plan, renderer, entry) for entry in plan.train]
    held = None
    if config.data.val_size and streams:
        held = _hold_out(streams, int(config.data.val_size), config.data.buffer_size, config.training.seed)
        names = frozenset(held.column("source").to_pylist())
        streams = [replace(stream, held_out=names) for stream in streams]
        held = pa.Table.from_batches(_packed(iter(held.to_batches()), plan)) if plan.packs else held
    if not streams:
        return None, None
    num_parts = max(1, config.training.dataloader_num_workers) * env.world_size()
    parts = [_iterable(stream, num_parts) for stream in streams]
    train = mix(parts, config.data.mix_strategy, config.data.interleave_probs, config.training.seed)
    if not config.finetuning.disable_shuffling:
        train = train.shuffle(seed=config.training.seed, buffer_size=config.data.buffer_size)
    return train, None if held is None else Dataset(held)


def _check(config: RunConfig, plan: Plan) -> None:
    data = config.data
    if data.tokenized_path:
        raise DataError("tokenized_path: a stream is never complete, so it cannot be saved; set streaming: false")
    if data.max_samples is not None:
        raise DataError(
            "max_samples: a stream has no fixed set to take samples from; remove it or set streaming: false"
        )
    sampled = [entry.name for entry in plan.train if entry.num_samples is not None]
    if sampled:
        raise DataError(
            f"dataset: {sampled[0]!r} has num_samples in its entry, which needs the whole set, but streaming reads "
            "it in passing; remove num_samples or set streaming: false"
        )
    if data.val_size and data.val_size != int(data.val_size):
        raise DataError(
            f"val_size: {data.val_size:g} is a share of the data, but the size of a stream is unknown; give a whole "
            "number of examples"
        )


def _stream(config: RunConfig, plan: Plan, renderer: Renderer, entry: DatasetEntry) -> Stream:
    return Stream(
        rows=open_rows(entry, plan.access),
        encoder=Encoder(entry, plan.kind, renderer, plan.limits),
        window=config.data.preprocessing_batch_size,
        skip_bad=config.data.on_bad_example == "skip",
        packs=config.data.cutoff_len if plan.packs else None,
    )


def _iterable(stream: Stream, num_parts: int) -> IterableDataset:
    # The public from_generator pickles and hashes the whole tokenizer to name a cache that streams never use.
    examples = ExamplesIterable(_Numbered(stream, num_parts), {"parts": list(range(num_parts))})
    return IterableDataset(examples, info=DatasetInfo(features=Features.from_arrow_schema(stream.schema)))


@dataclass(frozen=True)
class _Numbered:
    """A Stream in the shape datasets wants: (key, example) pairs for a list of parts."""

    stream: Stream
    num_parts: int

    def __deepcopy__(self, memo: object) -> _Numbered:
        """Nothing in here ever changes, and datasets copies its iterables often."""
        return self

    def __call__(self, parts: Sequence[int]) -> Iterator[tuple[tuple[int, int], dict[str, object]]]:
        for part in parts:
            for number, row in enumerate(self.stream.read(part, self.num_parts)):
                yield (part, number), row


def _hold_out(streams: Sequence[Stream], count: int, buffer_size: int, seed: int) -> pa.Table:
    """Draw `count` unpacked examples from the beginnings of all streams."""
    share = -(-min(max(buffer_size, count), 10 * count) // len(streams))
    tables = [_head(stream, share) for stream in streams]
    pool = pa.concat_tables(tables)
    if pool.num_rows <= count:
        raise DataError(
            f"val_size: {count} examples are to be held out, but the data has only {pool.num_rows}; give a smaller "
            "val_size"
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(pool.num_rows)[:count])
    return pool.take(pa.array(chosen))


def _head(stream: Stream, count: int) -> pa.Table:
    batches = []
    missing = count
    for batch in stream.encoded():
        batches.append(batch.slice(0, missing))
        missing -= batches[-1].num_rows
        if not missing:
            break
    return pa.Table.from_batches(batches, schema=schema_of(stream.encoder.kind))


def _packed(batches: Iterator[pa.RecordBatch], plan: Plan) -> Iterator[pa.RecordBatch]:
    return pack(batches, plan.kind, plan.cutoff_len)
