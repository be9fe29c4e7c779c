"""Logging: one logger tree, plain lines on stderr, notices printed once and on the first process only."""

from __future__ import annotations

import functools
import logging
import os
import sys

from llamafactory import env


@functools.cache
def _root() -> logging.Logger:
    root = logging.getLogger("llamafactory")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root.addHandler(handler)
    root.propagate = False
    root.setLevel(os.environ.get("LLAMAFACTORY_VERBOSITY", "INFO").upper())
    return root


def get_logger(name: str) -> logging.Logger:
    """Return the logger for a module; processes other than the first speak from ERROR upwards."""
    _root()
    logger = logging.getLogger(name)
    if env.rank() > 0:
        logger.setLevel(logging.ERROR)
    return logger


@functools.cache
def notice(message: str) -> None:
    """Log `message` at INFO level the first time it is given, on the first process only."""
    get_logger("llamafactory").info(message)
