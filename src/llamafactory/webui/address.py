"""Where a page listens and who may open it, from the environment. Refused before a model is loaded."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from llamafactory import env
from llamafactory.errors import ConfigError, first_line
from llamafactory.hosts import LOOPBACK

_FIRST_PORT, _NUM_PORTS = 7860, 100


@dataclass(frozen=True)
class Address:
    """credentials: (name, password), or None where only this machine can reach the page."""

    host: str
    port: int | None
    credentials: tuple[str, str] | None
    root_path: str = ""

    @property
    def is_loopback(self) -> bool:
        return self.host in LOOPBACK

    def listen(self) -> socket.socket:
        """A listening socket; without a chosen port the first free one from 7860 on. Raises ConfigError."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        ports = range(_FIRST_PORT, _FIRST_PORT + _NUM_PORTS) if self.port is None else (self.port,)
        for port in ports:
            # Without the protocol asyncio would let small packets wait for each other.
            found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind((self.host, port))
                found.listen(128)
                return found
            except OSError as error:
                found.close()
                failed = error
        raise ConfigError(
            f"GRADIO_SERVER_NAME, GRADIO_SERVER_PORT: cannot listen on {self.host}, port {ports[0]}"
            f"{' and those behind it' if self.port is None else ''} ({first_line(failed)}); choose another port or host"
        )


def read_address() -> Address:
    """The address that GRADIO_SERVER_NAME, GRADIO_SERVER_PORT, GRADIO_IPV6, GRADIO_ROOT_PATH and GRADIO_AUTH give.

    Raises ConfigError for a host that others can reach without GRADIO_AUTH, and for a public tunnel.
    """
    if env.is_enabled("GRADIO_SHARE"):
        raise ConfigError(
            "GRADIO_SHARE: a public tunnel would open the page to everyone; unset it, and use GRADIO_SERVER_NAME with "
            "GRADIO_AUTH, or a tunnel of your own such as ssh -L"
        )
    host = os.environ.get("GRADIO_SERVER_NAME") or ("::1" if env.is_enabled("GRADIO_IPV6") else "127.0.0.1")
    host = host.strip("[]")
    found = Address(host, _port(), _credentials(), os.environ.get("GRADIO_ROOT_PATH", ""))
    if not found.is_loopback and found.credentials is None:
        raise ConfigError(
            f"GRADIO_SERVER_NAME: {host!r} can be reached from other machines and GRADIO_AUTH is empty, so everyone "
            "there could use the model; set GRADIO_AUTH=name:password, or leave GRADIO_SERVER_NAME at 127.0.0.1"
        )
    return found


def _port() -> int | None:
    text = os.environ.get("GRADIO_SERVER_PORT", "")
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(f"GRADIO_SERVER_PORT: got {text!r}; give a number from 1 to 65535")
    return int(text)


def _credentials() -> tuple[str, str] | None:
    text = os.environ.get("GRADIO_AUTH", "")
    if not text:
        return None
    name, _, password = text.partition(":")
    if not name or not password:
        raise ConfigError("GRADIO_AUTH: it needs a name and a password; write GRADIO_AUTH=name:password")
    return name, password
