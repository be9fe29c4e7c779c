"""How environment variables are read, and those every room may ask for.

Variables that start a group are read in `launch` alone, those of the server in `api.settings`.
"""

from __future__ import annotations

import os

_TRUE = {"1", "true", "y", "yes", "on"}


def is_enabled(name: str, default: bool = False) -> bool:
    """True when the variable holds 1, true, y, yes or on, in any case."""
    value = os.environ.get(name)
    return default if value is None else value.strip().lower() in _TRUE


def local_rank() -> int:
    """Index of this process on its machine; 0 when not launched in a group."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def rank() -> int:
    """Index of this process in the whole group; 0 when not launched in a group."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes in the group; 1 when not launched in a group."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def in_group() -> bool:
    """True when a launcher started this process as part of a group, even of a group of one."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def text(name: str, default: str = "") -> str:
    """The variable's text without blanks around it; `default` when it is absent or blank."""
    return os.environ.get(name, "").strip() or default
