"""Streaming: complete with any number of loader workers, shuffled, with held-out validation rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from datasets import IterableDataset
from torch.utils.data import DataLoader

from llamafactory.config.run import RunConfig
from llamafactory.data.pipeline import build_datasets
from llamafactory.errors import DataError
from llamafactory.rendering.renderer import Renderer

MakeConfig = Callable[..., RunConfig]
Stream = Callable[..., IterableDataset]


@pytest.fixture
def stream(
    make_config: MakeConfig, write_set: Callable[..., None], alpaca_rows: Callable[[int], list[dict[str, str]]],
    renderer: Renderer,
) -> Stream:  # fmt: skip
    def build(*, count: int = 40, workers: int = 0, shuffle: bool = True, **data: object) -> IterableDataset:
        write_set("a", alpaca_rows(count))
        training = {"dataloader_num_workers": workers, "max_steps": 10}
        config = make_config(
            "a", streaming=True, training=training, shuffle=shuffle, preprocessing_batch_size=8, **data
        )
        train = build_datasets(config, renderer).train
        assert isinstance(train, IterableDataset)
        return train

    return build


def names(rows: object) -> list[str]:
    return [row["source"] for row in rows]  # type: ignore[attr-defined]


EVERY = [f"a.json:{number}" for number in range(1, 41)]


@pytest.mark.parametrize("workers", [0, 3])
def test_every_row_once_with_any_number_of_workers(stream: Stream, workers: int) -> None:
    loader = DataLoader(stream(workers=workers), batch_size=None, num_workers=workers)
    assert sorted(names(loader)) == sorted(EVERY)


def test_file_order_without_shuffling(stream: Stream) -> None:
    assert names(stream(shuffle=False)) == EVERY


def test_shuffle_depends_on_epoch_and_buffer(stream: Stream) -> None:
    train = stream(buffer_size=20)
    first = names(train)
    assert first == names(train)
    assert first != EVERY
    train.set_epoch(1)
    assert names(train) != first
    assert names(stream(buffer_size=1)) == EVERY


def test_rows_equal_those_prepared_in_advance(stream: Stream, make_config: MakeConfig, renderer: Renderer) -> None:
    streamed = list(stream(shuffle=False))
    prepared = build_datasets(make_config("a"), renderer).train
    assert prepared is not None
    for ours, theirs in zip(streamed, prepared, strict=True):
        assert ours["input_ids"] == theirs["input_ids"]
        assert ours["labels"] == theirs["labels"]


def test_validation_rows_never_come_up_in_training(stream: Stream, make_config: MakeConfig, renderer: Renderer) -> None:
    stream()
    built = build_datasets(make_config("a", streaming=True, val_size=4), renderer)
    assert isinstance(built.train, IterableDataset)
    held = built.evals["validation"]["source"][:]
    assert len(held) == 4
    assert held != EVERY[:4]
    for epoch in range(3):
        built.train.set_epoch(epoch)
        assert sorted([*names(built.train), *held]) == sorted(EVERY)


def test_packed_stream(stream: Stream) -> None:
    rows = list(stream(packing=True, cutoff_len=100, shuffle=False))
    assert sum(len(row["lengths"]) for row in rows) == 40
    assert max(row["length"] for row in rows) <= 100
    assert len(rows) < 40


def test_mixed_streams(
    make_config: MakeConfig, write_set: Callable[..., None], alpaca_rows: Callable[[int], list[dict[str, str]]],
    renderer: Renderer,
) -> None:  # fmt: skip
    write_set("a", alpaca_rows(2))
    write_set("b", alpaca_rows(2))
    config = make_config("a", "b", streaming=True, mix_strategy="interleave_once", shuffle=False)
    assert names(build_datasets(config, renderer).train) == ["a.json:1", "b.json:1", "a.json:2", "b.json:2"]


def test_stream_goes_on_where_its_state_says(stream: Stream) -> None:
    train = stream(shuffle=False)
    seen = []
    for index, row in enumerate(train):
        seen.append(row["source"])
        if index == 12:
            state = train.state_dict()
            break
    train.load_state_dict(state)
    assert seen + names(train) == EVERY


def test_bad_rows_stop_a_stream_or_are_skipped(
    make_config: MakeConfig, write_set: Callable[..., None], renderer: Renderer
) -> None:
    write_set("a", [{"instruction": "q", "output": "a"}, {"instruction": "q"}])
    train = build_datasets(make_config("a", streaming=True), renderer).train
    with pytest.raises(DataError, match=r"a\.json:2: field 'output'"):
        list(train or ())
    train = build_datasets(make_config("a", streaming=True, on_bad_example="skip"), renderer).train
    assert len(list(train or ())) == 1


@pytest.mark.parametrize(
    ("options", "entry", "message"),
    [
        ({"val_size": 0.5}, {}, "val_size: 0.5 is a share of the data"),
        ({"val_size": 4}, {}, "val_size: 4 examples are to be held out, but the data has only 4"),
        ({"max_samples": 5}, {}, "max_samples: a stream has no fixed set"),
        ({"tokenized_path": "x"}, {}, "tokenized_path: a stream is never complete"),
        ({}, {"num_samples": 3}, "'a' has num_samples in its entry"),
    ],
)
def test_what_a_stream_cannot_do(
    make_config: MakeConfig, write_set: Callable[..., None], alpaca_rows: Callable[[int], list[dict[str, str]]],
    renderer: Renderer, options: dict[str, object], entry: dict[str, object], message: str,
) -> None:  # fmt: skip
    write_set("a", alpaca_rows(4), **entry)
    with pytest.raises(DataError, match=message):
        build_datasets(make_config("a", streaming=True, **options), renderer)
