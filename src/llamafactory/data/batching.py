"""Which rows share a batch. The order of examples depends on the seed, the epoch and the GLOBAL batch size alone.

Rows of like length are drawn together, which removes most padding, inside shuffled windows, which keeps the order
random. Knows lengths, not tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

_WINDOW = 50


class LengthGroupedSampler(Sampler[int]):
    """Yields row indices; each run of `global_batch_size` of them is one optimizer step.

    lengths: tokens of each row. global_batch_size: micro-batch size x accumulation steps x processes; how it is split
    among these three does not change the order. Within a step rows ascend in length, so micro-batches are alike.
    """

    def __init__(
        self,
        lengths: Sequence[int] | npt.NDArray[np.integer],
        global_batch_size: int,
        *,
        seed: int = 42,
        epoch: int = 0,
    ) -> None:
        if global_batch_size < 1:
            raise ValueError("global_batch_size must be at least 1")
        self._lengths = np.asarray(lengths)
        self._size = global_batch_size
        self._seed = seed
        self._epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration yields."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def order(self) -> npt.NDArray[np.int64]:
        """All indices in the order of this epoch: shuffled windows of 50 batches, sorted inside, batches shuffled."""
        generator = np.random.default_rng([self._seed, self._epoch])
        shuffled = generator.permutation(len(self._lengths))
        whole = len(shuffled) // self._size * self._size
        step = _WINDOW * self._size
        batches = [
            self._sorted(shuffled[at : min(at + step, whole)]).reshape(-1, self._size) for at in range(0, whole, step)
        ]
        joined = np.concatenate(batches) if batches else np.empty((0, self._size), np.int64)
        mixed = joined[generator.permutation(len(joined))].reshape(-1)
        return np.concatenate([mixed, self._sorted(shuffled[whole:])])

    def _sorted(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return indices[np.argsort(self._lengths[indices], kind="stable")]
