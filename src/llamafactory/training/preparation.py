"""What a stage may do to the batches of an update before it. Knows no stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from llamafactory.objectives import Batch


class Preparation(Protocol):
    """Completes the batches of one update before its first forward pass, in every process at the same time.

    For what must be known of the whole update or of the policy before it changes: answers sampled by the policy, terms
    averaged over all batches. training: False for a single batch of an evaluation. Returns as many batches as it got,
    on the same device; gradients are off.
    """

    def __call__(self, model: nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]: ...


@runtime_checkable
class Foresighted(Protocol):
    """A preparation that works on the batches of several updates at once.

    In training it is called with those of the present update and of the following ones, and returns those of the
    present update.
    """

    def num_updates(self) -> int:
        """How many updates the next call must see, the present one included."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A preparation with a state of its own, which the checkpoints of every process keep.

    The state is nested plain values and tensors; it is restored before the first batch, with tensors on the CPU.
    """

    def state(self) -> Mapping[str, object]: ...
    def restore(self, state: Mapping[str, object]) -> None: ...
