"""The chat command: load the model, then talk until the input ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from llamafactory.config import RunConfig, load_config
from llamafactory.inference.artefact import complete
from llamafactory.inference.chat_model import ChatModel
from llamafactory.inference.session import new_session
from llamafactory.inference.terminal import converse


def run_chat(source: RunConfig | Mapping[str, object]) -> int:
    """Chat on stdin and stdout; returns the exit code. Raises ConfigError for a model that cannot chat."""
    config = complete(source if isinstance(source, RunConfig) else load_config(dict(source), command="chat"))
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    with ChatModel(config) as model:
        return converse(new_session(model), source=sys.stdin, target=sys.stdout)
