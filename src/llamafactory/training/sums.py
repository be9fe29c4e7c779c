"""Running [sum, count] pairs of metrics, merged over micro-batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricSums:
    """Adds up [sum, count] pairs on their device, without waiting for it, until they are asked for."""

    def __init__(self) -> None:
        self._pairs: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the pairs of one batch."""
        for name, pair in metrics.items():
            pair = pair.detach().to(torch.float32 if pair.device.type == "mps" else torch.float64)
            self._pairs[name] = self._pairs[name] + pair if name in self._pairs else pair

    def take(self, accelerator: Accelerator | None = None) -> dict[str, Tensor]:
        """The sums over all processes (of this one without an accelerator); starts again from nothing.

        Every process must have added the same names.
        """
        pairs, self._pairs = self._pairs, {}
        if accelerator is None or accelerator.num_processes == 1 or not pairs:
            return pairs
        names = sorted(pairs)
        merged = accelerator.reduce(torch.stack([pairs[name] for name in names]), reduction="sum")
        return dict(zip(names, merged, strict=True))

    def state(self) -> dict[str, Tensor]:
        """The pairs of this process, for a checkpoint."""
        return dict(self._pairs)

    def restore(self, pairs: Mapping[str, Tensor]) -> None:
        """Continue from what `state` returned."""
        self._pairs = dict(pairs)


def means(pairs: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of every metric that counted anything; `rewards/margins` is the difference of the two mean rewards."""
    values = {name: mean(pair) for name, pair in pairs.items() if name == "loss" or pair[1].item()}
    if {"rewards/chosen", "rewards/rejected"} <= values.keys():
        values["rewards/margins"] = values["rewards/chosen"] - values["rewards/rejected"]
    return values


def mean(pair: Tensor) -> float:
    """sum / count; NaN for a count of zero."""
    total, count = pair.tolist()
    return total / count if count else float("nan")
