"""Options: flat YAML, JSON or arguments in, one frozen `RunConfig` out. Knows neither torch nor transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamafactory.config.availability import refuse_unavailable
    from llamafactory.config.load import load_config
    from llamafactory.config.run import RunConfig

__all__ = ["RunConfig", "load_config", "refuse_unavailable"]

_HOMES = {"RunConfig": "run", "load_config": "load", "refuse_unavailable": "availability"}


def __getattr__(name: str) -> object:
    """Import the public names when they are first asked for, so that starting the program stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
