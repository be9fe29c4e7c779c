"""The webchat command: one model, one page with a chat box."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Mapping

from llamafactory.config import RunConfig, load_config
from llamafactory.inference.artefact import complete
from llamafactory.inference.chat_model import ChatModel
from llamafactory.parts import require
from llamafactory.webui.address import read_address


def run_webchat(source: RunConfig | Mapping[str, object]) -> int:
    """Serve the page until Ctrl-C; returns the exit code.

    Raises ConfigError for an address that is not safe and for a model that cannot chat, MissingPackageError.
    """
    config = complete(source if isinstance(source, RunConfig) else load_config(dict(source), command="webchat"))
    address = read_address()
    require("gradio", "webchat", extra="webui")
    from llamafactory.webui.chat_box import CSS
    from llamafactory.webui.page import build_chat_page
    from llamafactory.webui.server import Server, build_app

    with ChatModel(config) as model:
        page = build_chat_page(model, title=_title())
        server = Server(build_app(page, address, css=CSS), address)
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
    return 0


def _title() -> str:
    machine = os.environ.get("HOSTNAME") or os.environ.get("COMPUTERNAME") or platform.node()
    return f"Chat on {machine}" if machine else "Chat"
