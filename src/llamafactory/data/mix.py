"""Joining sets and splitting them: mixtures and validation parts. Deterministic in the seed; knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets

from llamafactory.errors import DataError

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)
_STOPPING = {
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
    "interleave_once": "all_exhausted_without_replacement",
}


def check_mix(strategy: str, probs: Sequence[float], num_datasets: int) -> None:
    """Raise DataError when the probabilities do not fit the strategy or the number of data sets."""
    if not probs:
        return
    if strategy == "concat":
        raise DataError(
            "interleave_probs: probabilities were given but mix_strategy is 'concat', which reads every data set in "
            "full, so they would have no effect; choose mix_strategy: interleave_under, interleave_over or "
            "interleave_once"
        )
    if len(probs) != num_datasets:
        raise DataError(
            f"interleave_probs: {len(probs)} probabilities for {num_datasets} data sets; give one for each name in "
            "dataset"
        )
    if min(probs) < 0 or not 0.999 < sum(probs) < 1.001:
        raise DataError(f"interleave_probs: {list(probs)} must be 0 or more and sum to 1; correct the list")


def mix(datasets: Sequence[AnyDataset], strategy: str, probs: Sequence[float], seed: int) -> AnyDataset:
    """Join data sets: one after the other, or drawn in turn (with `probs`, at random) until the strategy says stop."""
    if len(datasets) == 1:
        return datasets[0]
    if strategy == "concat":
        return concatenate_datasets(list(datasets))
    total = sum(probs)
    return interleave_datasets(
        list(datasets),
        probabilities=[p / total for p in probs] or None,
        seed=seed,
        stopping_strategy=_STOPPING[strategy],
    )


def split(dataset: Dataset, val_size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Cut off a random validation set: `val_size` examples from 1 upwards, else that share. Both keep file order.

    Raises DataError when one side would be empty.
    """
    total = len(dataset)
    count = val_count(val_size, total)
    if not 0 < count < total:
        raise DataError(
            f"val_size: {val_size:g} of {total} examples leaves {max(total - count, 0)} to train on and {count} to "
            "validate; both sides need at least one, so give a smaller val_size or more data"
        )
    order = np.random.default_rng(seed).permutation(total)
    held, kept = np.sort(order[:count]), np.sort(order[count:])
    return dataset.select(kept), dataset.select(held)


def val_count(val_size: float, total: int) -> int:
    """Number of validation examples that `val_size` means."""
    return int(val_size) if val_size >= 1 else max(1, round(val_size * total))
