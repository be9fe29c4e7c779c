"""Run an app on a socket with uvicorn: start-up line, slow clients, and an end that ends running answers.

Knows uvicorn, no routes.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llamafactory.api.answering import Work
from llamafactory.api.settings import Settings
from llamafactory.inference.engine import Engine

_GRACE_SECONDS = 10


class Server(uvicorn.Server):
    """Says where it listens, ends running answers when it stops, and leaves signals to end in silence."""

    def __init__(self, config: uvicorn.Config, work: Work, settings: Settings) -> None:
        super().__init__(config)
        self._work = work
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            url = f"{_url(sockets[0])}{self._settings.root_path}/v1"
            sys.stdout.write(f"serving {self._settings.model_name} at {url} (Ctrl-C ends it)\n")
            sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._work.stopping.set()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Take SIGINT and SIGTERM as the wish to end; unlike uvicorn's own, it does not raise them again afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def build_server(app: FastAPI, settings: Settings) -> Server:
    """A server for an app of `create_app`."""
    config = uvicorn.Config(
        app,
        http=_protocol(settings.limits.header_seconds),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return Server(config, app.state.work, settings)


async def serve_app(app: FastAPI, engine: Engine, settings: Settings, sock: socket.socket) -> None:
    """Serve until a signal comes; closes the engine."""
    try:
        await build_server(app, settings).serve([sock])
    finally:
        await engine.close()


def _protocol(header_seconds: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 that hangs up on clients which begin a request and do not come to the end of its headers in time."""

    class Impatient(H11Protocol):
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._clock = self.loop.call_later(header_seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits_for_headers = self.conn.their_state is h11.IDLE
            if not waits_for_headers and self._clock is not None:
                self._clock.cancel()
                self._clock = None
            elif waits_for_headers and self._clock is None:
                self._clock = self.loop.call_later(header_seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._clock is not None:
                self._clock.cancel()
            super().connection_lost(exc)

    return Impatient


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
