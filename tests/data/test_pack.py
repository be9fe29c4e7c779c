"""Packing: best fit over the whole set, text end to end; no token lost, invented or moved between examples."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafactory.data.examples import Example, to_batch
from llamafactory.data.pack import best_fit, pack_examples, pack_text
from llamafactory.rendering.tokens import IGNORE_INDEX


def test_best_fit_prefers_the_fullest_row() -> None:
    assert best_fit([5, 3, 9, 2, 6, 7], 10) == [[0], [1, 5], [2], [3, 4]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_rows_hold_every_example_once_and_fit(lengths: list[int]) -> None:
    rows = best_fit(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 20) + 4


def test_a_whole_set_is_packed_tightly() -> None:
    rng = random.Random(0)
    lengths = [min(2048, max(8, round(rng.lognormvariate(5, 0.8)))) for _ in range(20_000)]
    rows = best_fit(lengths, 2048)
    assert sum(lengths) / (len(rows) * 2048) > 0.99


def examples(*lengths: int, weighted: int = -1) -> list[Example]:
    made = []
    for index, length in enumerate(lengths):
        ids = [100 * index + place for place in range(length)]
        labels = [IGNORE_INDEX, *ids[1:]]
        weights = [0.5] * length if index == weighted else None
        made.append(Example(f"set.json:{index + 1}", {"input_ids": ids, "labels": labels}, weights))
    return made


def test_packed_rows_keep_examples_whole() -> None:
    table = pa.Table.from_batches([to_batch(examples(5, 3, 9, 2), "conversation")])
    rows = [row for batch in pack_examples(table, 10) for row in batch.to_pylist()]
    assert [row["lengths"] for row in rows] == [[5, 3, 2], [9]]
    assert rows[0]["input_ids"] == [0, 1, 2, 3, 4, 100, 101, 102, 300, 301]
    assert rows[0]["labels"] == [-100, 1, 2, 3, 4, -100, 101, 102, -100, 301]
    assert rows[0]["source"] == "set.json:1, set.json:2, set.json:4"
    assert [row["length"] for row in rows] == [10, 9]
    assert rows[0]["weights"] is None


def test_weights_travel_along() -> None:
    table = pa.Table.from_batches([to_batch(examples(3, 2, weighted=1), "conversation")])
    row = next(pack_examples(table, 10)).to_pylist()[0]
    assert row["weights"] == [0, 1, 1, 0.5, 0.5]


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_text_is_cut_end_to_end_without_a_tail_lost(batch_size: int) -> None:
    made = examples(7, 1, 12, 3)
    batches = [to_batch(made[at : at + batch_size], "text") for at in range(0, 4, batch_size)]
    rows = [row for batch in pack_text(iter(batches), 5) for row in batch.to_pylist()]
    assert [row["length"] for row in rows] == [5, 5, 5, 5, 3]
    assert [row["lengths"] for row in rows] == [[5], [2, 1, 2], [5], [5], [3]]
    assert [token for row in rows for token in row["input_ids"]] == [t for e in made for t in e.columns["input_ids"]]
    assert [token for row in rows for token in row["labels"]] == [t for e in made for t in e.columns["labels"]]
    assert rows[1]["source"] == "set.json:1, set.json:2, set.json:3"
