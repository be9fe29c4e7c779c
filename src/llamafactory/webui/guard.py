"""What stands in front of every request: a name and password, the page's own origin, and rules for the browser.

Knows HTTP headers, no page. The same for files, pages and streams, whatever serves them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from llamafactory.hosts import LOOPBACK, name_of_host

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Nothing is fetched from elsewhere: an image in an answer would carry the conversation away in its address.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """An ASGI application in front of another.

    credentials: (name, password) every request must bring as HTTP Basic, or None. loopback: only requests that name
    this machine are answered, so that no foreign name can be made to point here.
    """

    def __init__(self, app: App, *, credentials: tuple[str, str] | None, loopback: bool) -> None:
        self._app, self._credentials, self._loopback = app, credentials, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401 or 403, or hand the request on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[1]})
        else:
            await _refuse(send, *refusal)

    def _refusal(self, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self._loopback and name_of_host(host) not in LOOPBACK:
            return 403, f"Host: {host!r} is not this machine; open the page at 127.0.0.1"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, f"Origin: a page of {origin!r} may not use this one"
        if self._credentials is not None and not _is_known(headers.get("authorization", ""), self._credentials):
            return 401, "Authorization: name and password are needed"
        return None


def _is_known(header: str, credentials: tuple[str, str]) -> bool:
    """Compared in constant time."""
    kind, _, encoded = header.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True) if kind.lower() == "basic" else b""
    except binascii.Error:
        given = b""
    return hmac.compare_digest(given, ":".join(credentials).encode())


def _with_headers(send: Send) -> Send:
    async def send_with(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return send_with


async def _refuse(send: Send, status: int, why: str) -> None:
    body = why.encode()
    headers: Iterable[tuple[bytes, bytes]] = ((b"content-type", b"text/plain; charset=utf-8"), *_HEADERS)
    if status == 401:
        headers = (*headers, (b"www-authenticate", b'Basic realm="llamafactory", charset="UTF-8"'))
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
