"""The order of examples: a permutation that depends on seed, epoch and global batch size alone, and saves padding."""

from __future__ import annotations

import numpy as np
import pytest

from llamafactory.data.batching import LengthGroupedSampler

LENGTHS = np.random.default_rng(0).lognormal(4.5, 0.8, 1003).astype(int) + 1


def padding(order: list[int], micro: int) -> float:
    batches = [LENGTHS[order[at : at + micro]] for at in range(0, len(order), micro)]
    return 1 - LENGTHS.sum() / sum(batch.max() * len(batch) for batch in batches)


def test_every_row_once() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 8, seed=1)
    assert sorted(sampler) == list(range(len(LENGTHS)))
    assert len(sampler) == len(LENGTHS)


def test_seed_and_epoch_decide() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 8, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    assert list(LengthGroupedSampler(LENGTHS, 8, seed=1, epoch=1)) == second
    assert list(LengthGroupedSampler(LENGTHS, 8, seed=2)) != first


def test_padding_shrinks_while_global_batches_stay_random() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 8, seed=1))
    random_order = np.random.default_rng(1).permutation(len(LENGTHS)).tolist()
    assert padding(random_order, 4) > 0.3
    assert padding(order, 4) < 0.1
    means = np.array([LENGTHS[order[at : at + 8]].mean() for at in range(0, 1000, 8)])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_rows_ascend_inside_a_global_batch_and_the_rest_comes_last() -> None:
    order = list(LengthGroupedSampler(LENGTHS, 8, seed=3))
    for at in range(0, len(order), 8):
        batch = LENGTHS[order[at : at + 8]].tolist()
        assert batch == sorted(batch)


@pytest.mark.parametrize(("rows", "size"), [(0, 4), (3, 4), (4, 4), (5, 1)])
def test_small_sets(rows: int, size: int) -> None:
    assert sorted(LengthGroupedSampler([5] * rows, size)) == list(range(rows))


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LengthGroupedSampler([1], 0)
