"""Packing: several examples in one row of at most `limit` tokens, over the whole set.

A packed row has `lengths`, the lengths of its examples in order; collation restarts the positions at each of them, so
they never see each other. Knows token columns only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llamafactory.data.examples import FLOAT_LIST, INT_LIST
from llamafactory.data.kinds import Kind
from llamafactory.rendering.tokens import IGNORE_INDEX

PACKED_SCHEMA = pa.schema(
    {
        "input_ids": INT_LIST,
        "labels": INT_LIST,
        "weights": FLOAT_LIST,
        "lengths": INT_LIST,
        "length": pa.int32(),
        "source": pa.string(),
    }
)
_ROWS_PER_BATCH = 512
Ints = npt.NDArray[np.int64]


def best_fit(lengths: Sequence[int] | Ints, limit: int) -> list[list[int]]:
    """Best-fit decreasing: put each example, longest first, into the fullest row that still has room for it.

    Returns the indices of each row, ascending; rows are ordered by their first index. Every length must be at most
    `limit`.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(limit + 1)]
    rooms = 0  # bit r is set while some row has exactly r tokens of room
    for index in order:
        length = int(lengths[index])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            rows[row].append(index)
        else:
            room, row = limit, len(rows)
            rows.append([index])
        left = room - length
        with_room[left].append(row)
        rooms |= 1 << left
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])


def pack(batches: Iterable[pa.RecordBatch], kind: Kind, limit: int) -> Iterator[pa.RecordBatch]:
    """Pack batches as they come: text end to end across all of them, other examples by best fit within each batch."""
    if kind == "text":
        yield from pack_text(batches, limit)
        return
    for batch in batches:
        yield from pack_examples(pa.Table.from_batches([batch]), limit)


def pack_examples(table: pa.Table, limit: int) -> Iterator[pa.RecordBatch]:
    """Pack the rows of a tokenized table by best fit; yields batches of PACKED_SCHEMA."""
    rows = best_fit(table.column("length").to_numpy(), limit)
    for start in range(0, len(rows), _ROWS_PER_BATCH):
        yield _gather(table, rows[start : start + _ROWS_PER_BATCH])


def _gather(table: pa.Table, rows: Sequence[Sequence[int]]) -> pa.RecordBatch:
    taken = table.take(pa.array([index for row in rows for index in row], pa.int64())).combine_chunks()
    lengths = taken.column("length").to_numpy().astype(np.int64)
    sizes = np.array([len(row) for row in rows])
    row_of = np.repeat(np.arange(len(rows)), sizes)
    row_lengths = np.bincount(row_of, weights=lengths, minlength=len(rows)).astype(np.int64)
    labels = _flat(taken, "labels")
    sources = taken.column("source").to_pylist()
    ends = np.cumsum(sizes)
    columns = {
        "input_ids": _regroup(_flat(taken, "input_ids"), row_lengths),
        "labels": _regroup(labels, row_lengths),
        "weights": _weights(taken, labels, row_lengths),
        "lengths": _regroup(lengths.astype(np.int32), sizes),
        "length": pa.array(row_lengths, pa.int32()),
        "source": pa.array([", ".join(sources[end - size : end]) for end, size in zip(ends, sizes, strict=True)]),
    }
    return pa.record_batch([columns[name] for name in PACKED_SCHEMA.names], schema=PACKED_SCHEMA)


def _weights(taken: pa.Table, labels: npt.NDArray[np.int32], row_lengths: Ints) -> pa.Array:
    """Weights of packed rows; examples without weights count 1 wherever they are supervised."""
    if "weights" not in taken.column_names or taken.column("weights").null_count == taken.num_rows:
        return pa.nulls(len(row_lengths), FLOAT_LIST)
    flat = (labels != IGNORE_INDEX).astype(np.float32)
    ends = np.cumsum(taken.column("length").to_numpy())
    for end, weights in zip(ends.tolist(), taken.column("weights").to_pylist(), strict=True):
        if weights is not None:
            flat[end - len(weights) : end] = weights
    return _regroup(flat, row_lengths)


def pack_text(batches: Iterable[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    """Join documents end to end and cut them into rows of `limit` tokens; only the last row may be shorter.

    A document cut at a border goes on in the next row as an example of its own. No token is dropped.
    """
    ids = labels = np.empty(0, np.int32)
    parts: list[tuple[str, int]] = []
    for batch in batches:
        ids = np.concatenate([ids, _flat(batch, "input_ids")])
        labels = np.concatenate([labels, _flat(batch, "labels")])
        parts += zip(batch.column("source").to_pylist(), batch.column("length").to_pylist(), strict=True)
        whole = len(ids) // limit * limit
        if whole:
            rows, parts = _cut_rows(parts, whole, limit)
            yield _text_batch(ids[:whole], labels[:whole], rows)
            ids, labels = ids[whole:], labels[whole:]
    if len(ids):
        yield _text_batch(ids, labels, [parts])


def _cut_rows(
    parts: Sequence[tuple[str, int]], total: int, limit: int
) -> tuple[list[list[tuple[str, int]]], list[tuple[str, int]]]:
    """Deal (source, length) parts into rows of `limit` tokens, `total` in all; returns the rows and what is left."""
    rows: list[list[tuple[str, int]]] = [[]]
    room = limit
    left: list[tuple[str, int]] = []
    for source, length in parts:
        while length and total:
            taken = min(length, room)
            rows[-1].append((source, taken))
            length, room, total = length - taken, room - taken, total - taken
            if not room and total:
                rows.append([])
                room = limit
        if length:
            left.append((source, length))
    return rows, left


def _text_batch(
    ids: npt.NDArray[np.int32], labels: npt.NDArray[np.int32], rows: Sequence[Sequence[tuple[str, int]]]
) -> pa.RecordBatch:
    row_lengths = np.array([sum(length for _, length in row) for row in rows], dtype=np.int64)
    columns = {
        "input_ids": _regroup(ids, row_lengths),
        "labels": _regroup(labels, row_lengths),
        "weights": pa.nulls(len(rows), FLOAT_LIST),
        "lengths": pa.array([[length for _, length in row] for row in rows], INT_LIST),
        "length": pa.array(row_lengths, pa.int32()),
        "source": pa.array([", ".join(source for source, _ in row) for row in rows]),
    }
    return pa.record_batch([columns[name] for name in PACKED_SCHEMA.names], schema=PACKED_SCHEMA)


def _flat(table: pa.Table | pa.RecordBatch, column: str) -> npt.NDArray[np.int32]:
    """All tokens of a list column in one array."""
    values = table.column(column)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False)


def _regroup(flat: npt.NDArray[np.generic], sizes: Ints) -> pa.ListArray:
    """A list array whose rows are consecutive runs of `flat`."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))
