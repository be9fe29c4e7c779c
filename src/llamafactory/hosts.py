"""Names of hosts as requests give them. Knows no server."""

from __future__ import annotations

from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def name_of_host(host: str) -> str:
    """The name in a Host header, in small letters, without its port and a dot at its end; empty when it has none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""
