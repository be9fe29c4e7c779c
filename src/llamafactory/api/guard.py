"""Who may come in: host names, origins, the key, the size of a body and the time it may take. Plain ASGI.

Every path but /health asks for the key, whether or not it exists, and so does every web socket.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamafactory.api.errors import ApiError, to_response
from llamafactory.api.settings import Settings
from llamafactory.hosts import name_of_host

OPEN_PATH = "/health"


class Guard:
    """Refuses what must not reach the routes, and hands them the whole body at once."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._key = settings.key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["root_path"] = self._settings.root_path
        try:
            self._check(scope)
            if scope["type"] == "http":
                receive = await self._read_body(scope, receive)
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raise ApiError unless the caller may be here."""
        headers = scope["headers"]
        host = _first(headers, b"host")
        self._check_host(host)
        self._check_origin(_first(headers, b"origin"), host)
        path = scope["path"].removeprefix(self._settings.root_path)
        if self._key and path != OPEN_PATH:
            self._check_key(_first(headers, b"authorization"))
        if scope["type"] == "websocket":
            raise ApiError(404, "There are no web sockets here")

    def _check_host(self, host: str) -> None:
        allowed = self._settings.hosts
        name = name_of_host(host)
        if allowed and name not in allowed:
            raise ApiError(
                403,
                f"Host: {name!r} is not a name of this server; call it by {', '.join(sorted(allowed))}, or let "
                "its operator add the name to API_ALLOWED_HOSTS",
                code="host_not_allowed",
            )

    def _check_origin(self, origin: str, host: str) -> None:
        if not origin or "*" in self._settings.origins or origin in self._settings.origins:
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            raise ApiError(
                403,
                f"Origin: pages of {origin!r} may not use this server; its operator can name them in API_CORS_ORIGINS",
                code="origin_not_allowed",
            )

    def _check_key(self, given: str) -> None:
        scheme, _, key = given.partition(" ")
        # Both sides always run to the end, so that the time says nothing about the key.
        same = hmac.compare_digest(key.strip().encode("latin-1"), self._key)
        if not (same and scheme.lower() == "bearer"):
            raise ApiError(401, "Invalid API key; send it as `Authorization: Bearer KEY`", code="invalid_api_key")

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body within its limits; returns a `receive` that gives it in one piece."""
        limits = self._settings.limits
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await _collect(scope, receive, limits.body_bytes)
        except TimeoutError:
            raise ApiError(408, f"The body did not come in within {limits.body_seconds:g} seconds") from None
        first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return first.pop() if first else await receive()

        return replay


async def _collect(scope: Scope, receive: Receive, most: int) -> bytes:
    length = _first(scope["headers"], b"content-length")
    if length.isdecimal() and int(length) > most:
        raise _too_large(most)
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            raise _too_large(most)
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The body is larger than {most} bytes, the most this server reads", code="body_too_large")


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": error.detail})
    else:
        await to_response(error)(scope, receive, send)


def _first(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in headers if key == name), "")
