"""Mixing and splitting."""

from __future__ import annotations

import pytest
from datasets import Dataset

from llamafactory.data.mix import check_mix, mix, split
from llamafactory.errors import DataError

A = Dataset.from_dict({"n": ["a0", "a1", "a2", "a3"]})
B = Dataset.from_dict({"n": ["b0", "b1"]})


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("concat", ["a0", "a1", "a2", "a3", "b0", "b1"]),
        ("interleave_under", ["a0", "b0", "a1", "b1"]),
        ("interleave_over", ["a0", "b0", "a1", "b1", "a2", "b0", "a3", "b1"]),
        ("interleave_once", ["a0", "b0", "a1", "b1", "a2", "a3"]),
    ],
)
def test_strategies(strategy: str, expected: list[str]) -> None:
    assert mix([A, B], strategy, (), 42)["n"][:] == expected


def test_one_set_and_twice_the_same() -> None:
    assert mix([A], "interleave_under", (), 1) is A
    assert mix([B, B], "concat", (), 1)["n"][:] == ["b0", "b1", "b0", "b1"]


def test_probabilities_and_seed_decide() -> None:
    large = Dataset.from_dict({"n": ["a"] * 1000}), Dataset.from_dict({"n": ["b"] * 1000})
    mixed = mix(large, "interleave_under", (0.9, 0.1), 7)["n"][:]
    assert 0.85 < mixed.count("a") / len(mixed) < 0.95
    assert mix(large, "interleave_under", (0.9, 0.1), 7)["n"][:] == mixed
    assert mix(large, "interleave_under", (0.9, 0.1), 8)["n"][:] != mixed


@pytest.mark.parametrize(
    ("strategy", "probs", "message"),
    [
        ("concat", (0.5, 0.5), "mix_strategy is 'concat'.*no effect"),
        ("interleave_under", (0.5,), "1 probabilities for 2 data sets"),
        ("interleave_under", (0.5, 0.6), "sum to 1"),
        ("interleave_under", (1.5, -0.5), "0 or more"),
    ],
)
def test_bad_probabilities(strategy: str, probs: tuple[float, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"interleave_probs: .*{message}"):
        check_mix(strategy, probs, 2)


@pytest.mark.parametrize(("val_size", "count"), [(1, 1), (1.0, 1), (3, 3), (0.25, 25), (0.001, 1)])
def test_split_is_random_disjoint_and_in_file_order(val_size: float, count: int) -> None:
    data = Dataset.from_dict({"n": list(range(100))})
    train, held = split(data, val_size, 42)
    assert len(held) == count
    assert sorted([*train["n"][:], *held["n"][:]]) == list(range(100))
    assert train["n"][:] == sorted(train["n"][:])
    assert split(data, val_size, 42)[1]["n"][:] == held["n"][:]
    assert count == 1 or split(data, val_size, 43)[1]["n"][:] != held["n"][:]


@pytest.mark.parametrize("val_size", [4, 9])
def test_split_leaves_something_on_both_sides(val_size: float) -> None:
    with pytest.raises(DataError, match=f"val_size: {val_size} of 4 examples leaves 0 to train on"):
        split(A, val_size, 1)
