"""The api command: load the model, listen, answer until told to stop.

Imports the HTTP packages late, so that a missing one is told in a sentence.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from llamafactory.api.settings import Settings, read_settings
from llamafactory.config import RunConfig, load_config, refuse_unavailable
from llamafactory.errors import ConfigError, first_line
from llamafactory.parts import require

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "PIL")


def run_api(source: RunConfig | Mapping[str, object]) -> int:
    """Serve a model over HTTP until SIGINT or SIGTERM; returns the exit code.

    The port is taken before the model is loaded. Raises ConfigError for settings that are wrong or not safe.
    """
    for package in _PACKAGES:
        require(package, "the command 'api'", extra="serve")
    from llamafactory.inference.artefact import complete
    from llamafactory.inference.engine import build_engine

    settings = read_settings()
    config = complete(source if isinstance(source, RunConfig) else load_config(dict(source), command="api"))
    refuse_unavailable(config, "api")
    with listening(settings) as sock:
        engine = build_engine(config)
        from llamafactory.api.app import create_app
        from llamafactory.api.server import serve_app
        from llamafactory.inference.engine import GenerationOptions

        app = create_app(
            engine,
            settings,
            GenerationOptions.from_config(config.generation),
            gives="scores" if config.finetuning.stage == "rm" else "answers",
        )
        asyncio.run(serve_app(app, engine, settings, sock))
    return 0


@contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """A socket with the server's address. Raises ConfigError when it cannot be had."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise _no_address(settings, error) from None
    with socket.socket(*found[:3]) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(found[4])
        except OSError as error:
            raise _no_address(settings, error) from None
        yield sock


def _no_address(settings: Settings, error: OSError) -> ConfigError:
    return ConfigError(
        f"API_HOST, API_PORT: cannot listen on {settings.host}:{settings.port} ({first_line(error)}); stop what uses "
        "the port, or choose another with API_PORT"
    )
