"""One framework to fine-tune, align, export and serve language models. Importing this package loads nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llamafactory.config.load import load_config
    from llamafactory.config.run import RunConfig
    from llamafactory.inference.chat_model import ChatModel
    from llamafactory.recipes.train import run_train
    from llamafactory.rendering.template import get_template

__version__ = "0.1.0"
__all__ = ["ChatModel", "RunConfig", "__version__", "get_template", "load_config", "run_train"]

_HOMES = {
    "ChatModel": "inference.chat_model",
    "RunConfig": "config.run",
    "get_template": "rendering.template",
    "load_config": "config.load",
    "run_train": "recipes.train",
}


def __getattr__(name: str) -> object:
    """Import the public names when they are first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
