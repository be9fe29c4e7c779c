"""Differences between the transformers and hub client releases we support, one function each. Knows no options."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from typing import TYPE_CHECKING

from transformers.utils import logging as library_logs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def enable_activation_checkpointing(model: PreTrainedModel, *, reentrant: bool) -> None:
    """Switch on recomputation in all layers; the method was renamed after 5.17."""
    options = {"use_reentrant": reentrant}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def transport_errors() -> tuple[type[Exception], ...]:
    """What the hub client raises when the network fails: errors of its HTTP package, which changed its name."""
    name = next(name for name in ("httpx2", "httpx") if importlib.util.find_spec(name))
    return (importlib.import_module(name).HTTPError, OSError)


def calm_libraries() -> None:
    """Keep loading and saving readable: no progress bars in log files, no warning about a name that PEFT still uses."""
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if not sys.stderr.isatty():
        library_logs.disable_progress_bar()
