"""Mean and variance of all numbers seen so far, without keeping them. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class RunningMoments:
    """Merges batches by their count, mean and squared deviations (Chan, Golub, LeVeque 1979, equation 2.1)."""

    def __init__(self) -> None:
        self.count, self.mean, self._deviations = 0.0, 0.0, 0.0

    @property
    def deviation(self) -> float:
        """Unbiased standard deviation; 0 below two values."""
        return (self._deviations / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0

    def add(self, sums: Tensor) -> None:
        """Add a batch given as [count, sum, sum of squares]."""
        count, total, squares = sums.tolist()
        if not count:
            return
        mean, everything = total / count, self.count + count
        away = mean - self.mean
        self._deviations += max(0.0, squares - count * mean * mean) + away * away * self.count * count / everything
        self.mean += away * count / everything
        self.count = everything

    def normalise(self, values: Tensor) -> Tensor:
        """(x - mean) / deviation over everything seen; only the mean is taken off while there is no deviation."""
        return (values - self.mean) / (self.deviation + 1e-8 if self.deviation else 1.0)

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        return {"count": self.count, "mean": self.mean, "deviations": self._deviations}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from what `state` returned."""
        self.count, self.mean, self._deviations = state["count"], state["mean"], state["deviations"]
