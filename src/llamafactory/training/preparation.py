"""What a stage may do to the batches of an update before it. Knows no stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from llamafactory.objectives import Batch


class Preparation(Protocol):
    """Completes the batches of one update before its first forward pass, in every process at the same time.

    For what must be known of the whole update or of the policy before it changes: answers sampled by the policy, terms
    averaged over all batches. training: False for a single batch of an evaluation. Returns as many batches as it got,
    on the same device; gradients are off.
    """

    def __call__(self, model: nn.Module, batches: list[Batch], *, training: bool) -> list[Batch]: ...


@runtime_checkable
class Remembering(Protocol):
    """A preparation with a state of its own, which checkpoints keep."""

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...
