"""The frozen policy some objectives compare with. Objectives cannot tell which way it is made.

Knows no objective.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn


class ReferencePolicy(Protocol):
    """A policy that never learns."""

    def active(self, part: nn.Module | None = None) -> AbstractContextManager[nn.Module]:
        """Context in which the yielded model answers as the reference, in evaluation mode.

        part: the only module that will be called; a policy may then do less work to switch over.
        """
        ...


class AdapterOff:
    """The trained model with its adapters switched off: costs no memory. `model` is the unwrapped PEFT model."""

    def __init__(self, model: PeftModel) -> None:
        self._model = model

    @contextmanager
    def active(self, part: nn.Module | None = None) -> Iterator[nn.Module]:
        if part is not None and not isinstance(part, BaseTunerLayer | ModulesToSaveWrapper):
            yield self._model
            return
        was_training = self._model.training
        self._model.eval()
        try:
            with self._model.disable_adapter():
                yield self._model
        finally:
            self._model.train(was_training)


class FrozenCopy:
    """A model of its own, moved to evaluation mode and frozen in place."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)

    @contextmanager
    def active(self, part: nn.Module | None = None) -> Iterator[nn.Module]:
        yield self._model


def build_reference(model: nn.Module, separate: nn.Module | None = None) -> ReferencePolicy:
    """The reference for training `model` from its present weights.

    separate: a model loaded for this purpose; without one, the adapters are switched off where there are any, and the
    model is copied where there are none.
    """
    if separate is not None:
        return FrozenCopy(separate)
    if isinstance(model, PeftModel):
        return AdapterOff(model)
    return FrozenCopy(copy.deepcopy(model))
