"""Serving a page: gradio inside our own server, behind the guard, without anything from other machines."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI

from llamafactory.webui.address import Address
from llamafactory.webui.guard import Guard

_MAX_WAITING = 64
_TEXT_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
_CODE_FONTS = ("ui-monospace", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """The look of all pages: fonts of the reader's own machine alone."""
    fonts = gr.themes.Font
    return gr.themes.Base(
        primary_hue="teal",
        font=[fonts(name) for name in _TEXT_FONTS],
        font_mono=[fonts(name) for name in _CODE_FONTS],
    )


def build_app(page: gr.Blocks, address: Address, *, css: str = "") -> Guard:
    """The whole application; serves no file of this machine but gradio's own."""
    page.queue(max_size=_MAX_WAITING, default_concurrency_limit=16)
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        path="/",
        root_path=address.root_path or None,
        footer_links=[],
        theme=theme(),
        css=css,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size="1mb",
    )
    return Guard(app, credentials=address.credentials, loopback=address.is_loopback)


class Server:
    """A page being served at `url`."""

    def __init__(self, app: Guard, address: Address) -> None:
        self._socket = address.listen()
        host, port = self._socket.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(settings)

    def run(self) -> None:
        """Serve until `stop` or Ctrl-C."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """End `run` in another thread."""
        self._server.should_exit = True
