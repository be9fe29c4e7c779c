"""The frozen policy some objectives compare with. Objectives cannot tell which way it is made.

Knows no objective.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import TrainingArguments

from llamafactory.models.quantization import place

Autocast = Callable[[], AbstractContextManager[object]]


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
    """A model of its own, moved to evaluation mode and frozen in place. autocast: the precision it computes in."""

    def __init__(self, model: nn.Module, autocast: Autocast = nullcontext) -> None:
        self._model = model.eval().requires_grad_(False)
        self._autocast = autocast

    @contextmanager
    def active(self, part: nn.Module | None = None) -> Iterator[nn.Module]:
        with self._autocast():
            yield self._model


class BeforeTraining:
    """The trained model itself, as long as nothing has been trained: for what is computed beforehand."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @contextmanager
    def active(self, part: nn.Module | None = None) -> Iterator[nn.Module]:
        was_training = self._model.training
        self._model.eval()
        try:
            yield self._model
        finally:
            self._model.train(was_training)


def build_reference(
    model: nn.Module, separate: nn.Module | None = None, args: TrainingArguments | None = None, *, lasting: bool = True
) -> ReferencePolicy:
    """The reference for training `model` from its present weights.

    separate: a model loaded for this purpose; without one, the adapters are switched off where there are any, and the
    model is copied where there are none. args: device and precision of the run, for a model of its own. lasting: False
    for a reference that is only asked before the training, which needs no copy.
    """
    if separate is None and isinstance(model, PeftModel):
        return AdapterOff(model)
    if separate is None and not lasting:
        return BeforeTraining(model)
    other = copy.deepcopy(model) if separate is None else separate
    if args is None:
        return FrozenCopy(other)
    return FrozenCopy(place(other, args.device), autocast_of(args))


def autocast_of(args: TrainingArguments) -> Autocast:
    """The context in which a model outside the trainer computes as the trained one does."""
    if not (args.bf16 or args.fp16):
        return nullcontext
    return partial(torch.autocast, args.device.type, dtype=torch.bfloat16 if args.bf16 else torch.float16)
