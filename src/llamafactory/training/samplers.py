"""In which order examples are visited.

The order depends on the seed and the epoch alone, never on how a global batch is split over micro-batches and
processes. Knows lengths and numbers, not examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

import torch
from torch.utils.data import Dataset, Sampler

from llamafactory.rendering.tokens import IGNORE_INDEX

Example = Mapping[str, object]


class EpochSampler(Protocol):
    """A sampler whose order is a function of the epoch."""

    def set_epoch(self, epoch: int) -> None: ...
    def __iter__(self) -> Iterator[int]: ...
    def __len__(self) -> int: ...


class ShuffledSampler(Sampler[int]):
    """A new random order in every epoch."""

    def __init__(self, num_examples: int, seed: int) -> None:
        self._num_examples, self._seed, self._epoch = num_examples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(torch.randperm(self._num_examples, generator=generator).tolist())

    def __len__(self) -> int:
        return self._num_examples


class FixedSampler(Sampler[int]):
    """The same order in every epoch."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = order

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes."""

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)


def longest_first(lengths: Sequence[int]) -> FixedSampler:
    """Examples of like length together, the longest first, so that a lack of memory shows at once."""
    return FixedSampler(sorted(range(len(lengths)), key=lambda index: -lengths[index]))


class RoundSampler(Sampler[int]):
    """Rounds of `round_size` examples, each passed over `num_passes` times before the next.

    For answers that are sampled once and learned from several times. The last round of an epoch is filled up with
    examples from the beginning of the epoch, which get a second answer.
    """

    def __init__(self, inner: EpochSampler, *, round_size: int, num_passes: int) -> None:
        self._inner, self._round_size, self._num_passes = inner, round_size, num_passes

    def set_epoch(self, epoch: int) -> None:
        self._inner.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = list(self._inner)
        for start in range(0, len(order), self._round_size):
            places = [order[place % len(order)] for place in range(start, start + self._round_size)]
            for _ in range(self._num_passes):
                yield from places

    def __len__(self) -> int:
        return -(-len(self._inner) // self._round_size) * self._round_size * self._num_passes


class EvenSampler(Sampler[int]):
    """Fills the order up to a multiple of `multiple` with indices behind the end, which `MaskedTail` answers."""

    def __init__(self, inner: EpochSampler, multiple: int) -> None:
        self.inner, self._multiple = inner, multiple

    def set_epoch(self, epoch: int) -> None:
        self.inner.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        yield from self.inner
        yield from range(len(self.inner), len(self))

    def __len__(self) -> int:
        return -(-len(self.inner) // self._multiple) * self._multiple


class MaskedTail(Dataset[Example]):
    """A dataset that answers indices behind its end with copies in which nothing is supervised.

    Several processes need equally many batches. Such a copy adds exactly nothing to loss, gradient and counts, where
    repeating examples (the usual way) would count them twice.
    """

    def __init__(self, inner: Dataset[Example]) -> None:
        self.inner = inner
        self._num_examples = len(inner)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._num_examples

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        wanted = [index % self._num_examples for index in indices]
        fetch = getattr(self.inner, "__getitems__", None)
        rows = fetch(wanted) if fetch else [self.inner[index] for index in wanted]
        return [row if index < self._num_examples else _masked(row) for index, row in zip(indices, rows, strict=True)]


def _masked(row: Example) -> Example:
    """The example with every column of labels set to be ignored, and the mark `is_copy`."""
    columns = {name: _ignored(value) if name.endswith("labels") else value for name, value in row.items()}
    return {**columns, "is_copy": True}


def _ignored(labels: object) -> object:
    return [IGNORE_INDEX] * len(cast("Sequence[int]", labels))
