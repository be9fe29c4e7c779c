"""Which rows of a data set a run uses, and the records they are. Needs no tokenizer, no torch and no datasets "
"library."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from llamafactory.config.run import RunConfig
from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.formats import FORMATS
from llamafactory.data.plan import make_plan, open_rows
from llamafactory.data.sources import NamedRow, Position, Rows
from llamafactory.errors import DataError, did_you_mean
from llamafactory.logs import notice
from llamafactory.rendering.records import Record


def load_records(config: RunConfig) -> Iterator[Record | DataError]:
    """Yield the record of every row of every data set, or why there is none; needs no tokenizer."""
    plan = make_plan(config)
    for entry in dict.fromkeys((*plan.train, *plan.evals)):
        to_record = FORMATS.load(entry.formatting).to_record
        for source, row in choose_rows(config, entry, open_rows(entry, plan.access)):
            try:
                yield row if isinstance(row, DataError) else to_record(row, entry, source, stage_kind=plan.kind)
            except DataError as error:
                yield error


def choose_rows(
    config: RunConfig, entry: DatasetEntry, rows: Rows, position: Position | None = None
) -> Iterator[NamedRow]:
    """The rows of an entry that the run uses, watched for columns that never come up."""

    def read() -> Iterator[NamedRow]:
        return rows.read(position=position)

    chosen = sample(read, num_samples=entry.num_samples, max_samples=config.data.max_samples, seed=config.training.seed)
    return watch_columns(chosen, entry)


def watch_columns(rows: Iterator[NamedRow], entry: DatasetEntry) -> Iterator[NamedRow]:
    """Pass rows on; say afterwards which columns of the registry entry no row had."""
    missing = entry.columns.names(only_given=True)
    first: Mapping[str, object] = {}
    for named in rows:
        if missing and not isinstance(named[1], DataError):
            first = first or named[1]
            missing = {key: column for key, column in missing.items() if column not in named[1]}
        yield named
    for key, column in missing.items():
        if first:
            notice(
                f"{entry.name}: columns.{key}: no row has a field {column!r} (the first has {', '.join(first)}), so "
                f"the column has no effect{did_you_mean(column, first)}"
            )


def sample(
    read: Callable[[], Iterator[NamedRow]], *, num_samples: int | None, max_samples: int | None, seed: int
) -> Iterator[NamedRow]:
    """Yield a random sample of exactly `num_samples` rows, then at most `max_samples` of it, in file order.

    When the data has fewer rows than `num_samples`, every row comes once and the rest are drawn again with replacement.
    Without `num_samples`, the first `max_samples` rows.
    """
    if num_samples is None:
        return itertools.islice(read(), max_samples)
    return _draw(read, num_samples, max_samples, seed)


def _draw(
    read: Callable[[], Iterator[NamedRow]], num_samples: int, max_samples: int | None, seed: int
) -> Iterator[NamedRow]:
    available = sum(1 for _ in read())
    if not available:
        return
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(available)[:num_samples].tolist()
    if num_samples > available:
        drawn += generator.integers(available, size=num_samples - available).tolist()
    times = Counter(drawn[:max_samples])
    for index, named in enumerate(read()):
        for _ in range(times[index]):
            yield named
