"""Errors a user can cause or cure. Every message is one sentence: where, got, allowed, why, fix.

The command line prints these without a traceback and exits with code 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlamaFactoryError(Exception):
    """Base of every error that is the user's to cure."""


class ConfigError(LlamaFactoryError):
    """A run configuration cannot be honoured."""


class DataError(LlamaFactoryError):
    """A data set, its registry entry or one of its rows cannot be used."""


class MissingPackageError(LlamaFactoryError):
    """An optional package is needed; the message holds the install command."""


class ModelError(LlamaFactoryError):
    """A model, tokenizer or adapter cannot be loaded, changed or saved as asked."""


class CheckpointError(LlamaFactoryError):
    """A checkpoint is damaged, incomplete or does not belong to this run."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: Exception) -> str:
    """The first line of a library's message, without its full stop; the exception's name when it says nothing."""
    lines = [line.strip().removesuffix(".") for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
