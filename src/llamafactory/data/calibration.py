"""Calibration samples of a quantized export: random windows of tokens from documents under the key `text`.

A window comes from one document that is longer than it. Where no document is that long, all are joined, with the
end-of-text token between them. Knows no quantization.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.readers import Share, read_file
from llamafactory.data.sources import SOURCES, Access, NamedRow, Position
from llamafactory.data.sources.file import files_in
from llamafactory.errors import ConfigError, DataError
from llamafactory.logs import notice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llamafactory.config.run import RunConfig

KEY = "export_quantization_dataset"
_ROWS_PER_SAMPLE = 100


def calibration_windows(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """`export_quantization_nsamples` windows of `export_quantization_maxlen` token ids, the same for the same seed.

    Raises ConfigError, DataError.
    """
    wanted, length = config.export.export_quantization_nsamples, config.export.export_quantization_maxlen
    rows = islice(_rows(config), wanted * _ROWS_PER_SAMPLE)  # of a huge data set, the beginning
    texts = [_text(row, name) for name, row in rows]
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts if text.strip()]
    return draw_windows(
        documents, wanted, length, seed=config.training.seed, separator=tokenizer.eos_token_id, where=_name(config)
    )


def draw_windows(
    documents: Sequence[list[int]], wanted: int, length: int, *, seed: int, separator: int | None, where: str
) -> list[list[int]]:
    """`wanted` windows of `length` tokens, each from a document of more than `length`, or from all joined.

    Raises DataError when all documents together are too short.
    """
    order = random.Random(seed)
    long = [ids for ids in documents if len(ids) > length]
    if not long:
        long = [_joined(documents, order, separator)]
        if len(long[0]) <= length:
            raise DataError(
                f"{KEY}: {where} holds {len(long[0])} tokens in {len(documents)} documents, and a sample needs more "
                f"than {length} (export_quantization_maxlen); give more text or shorter samples"
            )
        notice(f"{KEY}: no document of {where} has more than {length} tokens, so the documents are joined")
    order.shuffle(long)
    windows = []
    for number in range(wanted):
        ids = long[number % len(long)]
        start = order.randrange(len(ids) - length)
        windows.append(ids[start : start + length])
    return windows


def _joined(documents: Sequence[list[int]], order: random.Random, separator: int | None) -> list[int]:
    between = [] if separator is None else [separator]
    shuffled = order.sample(list(documents), len(documents))
    return [token for ids in shuffled for token in (*ids, *between)]


def _rows(config: RunConfig) -> Iterator[NamedRow]:
    """The rows of a file, of a folder of files, or of the split `train` of a hub data set."""
    name = _name(config)
    path = Path(name).expanduser()
    if path.is_dir():
        return files_in(path, where=KEY).read()
    if path.is_file():
        return read_file(path, path.name, Position(), Share())
    if path.suffix or path.is_absolute():
        raise ConfigError(f"{KEY}: the file {path} does not exist; correct the path, or give the id of a hub data set")
    access = Access(
        Path(),
        cache_dir=None if config.hub.cache_dir is None else Path(config.hub.cache_dir),
        hf_token=config.hub.hf_hub_token,
        streaming=True,
    )
    rows = SOURCES.load("hf").load(DatasetEntry(name=KEY, source="hf", location=name), access)
    read: Iterator[NamedRow] = rows.read()
    return read


def _name(config: RunConfig) -> str:
    name = config.export.export_quantization_dataset
    assert name is not None
    return name


def _text(row: object, name: str) -> str:
    if isinstance(row, DataError):
        raise row
    assert isinstance(row, dict)
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(
            f"{KEY}: {name} has no text under the key 'text' (its keys: {', '.join(map(str, row)) or 'none'}); rename "
            "the key that holds the documents to text"
        )
    return text
