"""Orders of examples, and examples that fill a group of processes without counting."""

from __future__ import annotations

from datasets import Dataset
from tests.training.models import examples

from llamafactory.training.samplers import EvenSampler, FixedSampler, MaskedTail, ShuffledSampler, longest_first


def test_each_epoch_has_an_order_of_its_own_that_repeats() -> None:
    sampler = ShuffledSampler(50, seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first and sorted(sampler) == list(range(50)) and len(sampler) == 50
    sampler.set_epoch(0)
    assert list(sampler) == first == list(ShuffledSampler(50, seed=3)) != list(ShuffledSampler(50, seed=4))


def test_the_longest_examples_come_first() -> None:
    sampler = longest_first([3, 9, 5, 9])
    sampler.set_epoch(1)
    assert list(sampler) == [1, 3, 2, 0] and len(sampler) == 4


def test_the_order_is_filled_up_behind_the_end() -> None:
    sampler = EvenSampler(FixedSampler([2, 0, 1]), 4)
    sampler.set_epoch(1)
    assert list(sampler) == [2, 0, 1, 3] and len(sampler) == 4
    assert list(EvenSampler(FixedSampler([1, 0]), 2)) == [1, 0]


def test_examples_behind_the_end_are_masked_copies() -> None:
    rows = examples((5, 7))
    for inner in (rows, Dataset.from_list(rows)):
        tail = MaskedTail(inner)
        assert len(tail) == 2 and tail[1] == rows[1]
        first, masked = tail.__getitems__([0, 2])
        assert first == rows[0]
        assert masked["input_ids"] == rows[0]["input_ids"] and masked["labels"] == [-100] * 5
    assert rows[0]["labels"] != [-100] * 5
