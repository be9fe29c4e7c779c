"""From a configuration and a renderer to the data sets of a run.

The only module of the room that puts the others in order. Knows no model, no objective and no trainer.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, IterableDataset, disable_progress_bars

from llamafactory import env
from llamafactory.config.run import RunConfig
from llamafactory.data import saved
from llamafactory.data.cache import Found, get_or_build
from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.encode import Encoder, Renderer
from llamafactory.data.examples import schema_of, to_batch
from llamafactory.data.fingerprint import key_of
from llamafactory.data.mix import check_mix, mix, split
from llamafactory.data.pack import PACKED_SCHEMA, pack
from llamafactory.data.plan import Plan, make_plan, open_rows
from llamafactory.data.progress import progress
from llamafactory.data.report import Report, write_report
from llamafactory.data.rows import choose_rows
from llamafactory.data.sources import NamedRow, Position, Rows
from llamafactory.data.store import open_dataset, write_batches
from llamafactory.data.stream import stream_train
from llamafactory.data.workers import map_ordered
from llamafactory.logs import get_logger, notice

_LOGGER = get_logger(__name__)


@dataclass(frozen=True)
class Datasets:
    """The data of a run. evals: one set called "validation", or one for each eval_dataset under its own name.

    reports: what became of the rows, by data set name; report is their sum.
    """

    train: Dataset | IterableDataset | None
    evals: dict[str, Dataset]
    reports: dict[str, Report] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        total = Report()
        for report in self.reports.values():
            total.merge(report)
        return total


@dataclass(frozen=True)
class _Encoded:
    batch: pa.RecordBatch
    report: Report


@dataclass(frozen=True)
class _BatchEncoder:
    """An Encoder whose results are cheap to send between processes."""

    encoder: Encoder

    def __call__(self, rows: Sequence[NamedRow]) -> _Encoded:
        with _collector_paused():
            chunk = self.encoder(rows)
            return _Encoded(to_batch(chunk.examples, self.encoder.kind), chunk.report)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the cycle collector: a chunk makes many objects, no cycles, and scanning costs a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def build_datasets(config: RunConfig, renderer: Renderer, *, for_training: bool = True) -> Datasets:
    """Prepare the train and evaluation sets of a run; from the cache or tokenized_path where possible.

    for_training: False prepares the evaluation sets alone. Writes data_report.json into output_dir. Raises DataError
    naming file, row, field, expected and found for bad rows, and when no token is left to learn from.
    """
    disable_progress_bars()  # this room shows its own
    data = config.data
    settings = saved.Settings.of(config, renderer.fingerprint)
    if data.tokenized_path and saved.exists(Path(data.tokenized_path)):
        train, evals = saved.load(Path(data.tokenized_path), settings)
        return Datasets(train if for_training else None, evals)
    plan = make_plan(config)
    check_mix(data.mix_strategy, data.interleave_probs, len(plan.train))
    datasets = _Builder(config, plan, renderer).run(for_training=for_training)
    if data.tokenized_path and env.rank() == 0:
        saved.save(Path(data.tokenized_path), settings, datasets.train, datasets.evals)
    if config.training.output_dir and env.rank() == 0 and datasets.reports:
        write_report(datasets.reports, Path(config.training.output_dir))
    return datasets


def lengths_of(dataset: Dataset) -> npt.NDArray[np.int32]:
    """Tokens of each row, for length grouping."""
    return np.asarray(dataset.with_format("numpy")["length"][:])


class _Builder:
    """Builds the sets of one run; holds what all steps share."""

    def __init__(self, config: RunConfig, plan: Plan, renderer: Renderer) -> None:
        self._config = config
        self._plan = plan
        self._renderer = renderer
        self._reports: dict[str, Report] = {}
        self._keys: list[str] = []
        self._done: dict[DatasetEntry, Dataset] = {}
        self._tokens = {
            "renderer": renderer.fingerprint,
            "template": config.template.model_dump(mode="json"),
            "kind": plan.kind,
            "limits": repr(plan.limits),
        }

    def run(self, *, for_training: bool) -> Datasets:
        """Build everything; the training set only when it is asked for or holds the validation examples."""
        data, plan, seed = self._config.data, self._plan, self._config.training.seed
        evals = self._evals()
        train: Dataset | IterableDataset | None = None
        held: Dataset | None = None
        if data.streaming:
            train, held = stream_train(self._config, plan, self._renderer)
        elif plan.train and (for_training or data.val_size):
            train = mix([self._entry(entry) for entry in plan.train], data.mix_strategy, data.interleave_probs, seed)
            if data.val_size:
                train, held = split(train, data.val_size, seed)
                held = self._pack(held, "validation")
            train = self._pack(train, "train") if for_training else None
        if held is not None:
            evals["validation"] = held
        return Datasets(train if for_training else None, evals, self._reports)

    def _evals(self) -> dict[str, Dataset]:
        entries = self._plan.evals
        if not entries:
            return {}
        sets = {entry.name: self._entry(entry) for entry in entries}
        if not self._config.data.eval_on_each_dataset:
            data, seed = self._config.data, self._config.training.seed
            sets = {"validation": mix(list(sets.values()), data.mix_strategy, data.interleave_probs, seed)}
        return {name: self._pack(dataset, f"eval {name}") for name, dataset in sets.items()}

    def _entry(self, entry: DatasetEntry) -> Dataset:
        """The tokenized rows of one registry entry, unmixed and unpacked; an entry named twice is made once."""
        if entry not in self._done:
            self._done[entry] = self._make(entry)
        return self._done[entry]

    def _make(self, entry: DatasetEntry) -> Dataset:
        if self._plan.kind == "text" and entry.formatting != "alpaca":
            notice(f"{entry.name}: pre-training reads the first message of each row; the others have no effect")
        rows = open_rows(entry, self._plan.access)
        facts = {**self._tokens, "data": rows.fingerprint(), "entry": repr(entry), "seed": self._config.training.seed}
        facts |= {"max_samples": self._config.data.max_samples}
        if self._plan.kind == "feedback":  # answers are mismatched among rows encoded together
            facts |= {"window": self._config.data.preprocessing_batch_size}
        key = key_of(facts)
        found = self._cached(key, partial(self._tokenize, entry, rows))
        report = Report.from_json(found.facts["report"])  # type: ignore[arg-type]
        if self._config.data.on_bad_example == "error":
            report.raise_if_bad(entry.name)
        _LOGGER.info("%s%s: %s", entry.name, "" if found.built else " (cached)", report.line())
        for told in report.told(entry.name):
            notice(told)
        self._reports[entry.name] = report
        self._keys.append(key)
        return open_dataset(found.folder)

    def _cached(self, key: str, build: Callable[[Path], Mapping[str, object]]) -> Found:
        data = self._config.data
        return get_or_build(key, build, overwrite=data.overwrite_cache, shared=data.data_shared_file_system)

    def _tokenize(self, entry: DatasetEntry, rows: Rows, folder: Path) -> Mapping[str, object]:
        """Encode every row into `folder`. Raises DataError for bad rows and for sets without anything to learn."""
        total = Report()
        write_batches(folder, schema_of(self._plan.kind), self._encode(entry, rows, total))
        if self._plan.kind != "prompt":
            total.raise_if_empty(entry.name)
        return {"report": total.to_json(), "name": entry.name}

    def _encode(self, entry: DatasetEntry, rows: Rows, total: Report) -> Iterator[pa.RecordBatch]:
        data, plan = self._config.data, self._plan
        encoder = _BatchEncoder(Encoder(entry, plan.kind, self._renderer, plan.limits))
        position = Position()
        chunks = _chunks(choose_rows(self._config, entry, rows, position), data.preprocessing_batch_size)
        workers = data.preprocessing_num_workers or 1
        with progress(f"tokenizing {entry.name}") as shown:
            for encoded in map_ordered(encoder, chunks, num_workers=workers, name=_range):
                total.merge(encoded.report)
                if data.on_bad_example == "error":
                    total.raise_if_bad(entry.name)
                shown.update(position, total.read)
                yield encoded.batch

    def _pack(self, dataset: Dataset, part: str) -> Dataset:
        """Pack a finished set, if the run packs; the packed form is cached like any other."""
        if not self._plan.packs:
            return dataset
        data, seed = self._config.data, self._config.training.seed
        facts: dict[str, object] = {
            "packed": part,
            "entries": self._keys,
            "mix": [data.mix_strategy, data.interleave_probs, seed],
        }
        facts |= {"val_size": data.val_size, "rows": len(dataset), "limit": data.cutoff_len}
        return open_dataset(self._cached(key_of(facts), partial(self._write_packed, dataset)).folder)

    def _write_packed(self, dataset: Dataset, folder: Path) -> Mapping[str, object]:
        window = 1000 if self._plan.kind == "text" else len(dataset)
        tables = dataset.with_format("arrow").iter(window)
        batches = (table.combine_chunks().to_batches()[0] for table in tables)
        write_batches(folder, PACKED_SCHEMA, pack(batches, self._plan.kind, self._plan.cutoff_len))
        return {}


def _chunks(rows: Iterator[NamedRow], size: int) -> Iterator[list[NamedRow]]:
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def _range(rows: Sequence[NamedRow]) -> str:
    return f"{rows[0][0]} to {rows[-1][0]}"
