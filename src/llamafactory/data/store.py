"""Tokenized sets on disk: one Arrow stream file, written batch by batch and memory-mapped when read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

DATA_FILE = "data.arrow"


def write_batches(folder: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches to data.arrow in `folder`; memory stays at one batch."""
    with pa.OSFile(str(folder / DATA_FILE), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.write_batch(batch)


def open_dataset(folder: Path) -> Dataset:
    """Map data.arrow of `folder` as a data set; columns that hold nothing are left out."""
    dataset = Dataset.from_file(str(folder / DATA_FILE))
    empty = [name for name in dataset.column_names if name == "weights" and _is_null(dataset, name)]
    return dataset.remove_columns(empty)


def _is_null(dataset: Dataset, column: str) -> bool:
    values = dataset.data.column(column)
    return values.null_count == len(values)
