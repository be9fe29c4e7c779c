"""One value as a user gave it, before anything is known about its key."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Given:
    """A key, its value, the text it was written as (None when it had none), and the place it stands at.

    from_argument: the value is the raw text of a command-line argument and has no type yet. path: inner keys of a
    dotted key, such as ("num_cycles",) for lr_scheduler_kwargs.num_cycles.
    """

    key: str
    value: object
    text: str | None
    place: str
    from_argument: bool = False
    path: tuple[str, ...] = ()
