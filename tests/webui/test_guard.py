"""What every request has to bring, whatever it asks for."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from llamafactory.webui.guard import Guard


def ask(
    headers: dict[str, str], *, password: str = "", loopback: bool = True, kind: str = "http"
) -> tuple[int, dict[str, str]]:
    """The status a request is answered with, and the headers; 200 means that the application was reached."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    guard = Guard(app, credentials=("me", password) if password else None, loopback=loopback)
    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    first = sent[0]
    return first.get("status", first.get("code")), {k.decode(): v.decode() for k, v in first.get("headers", ())}


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1"])
def test_this_machine_is_answered(host: str) -> None:
    status, headers = ask({"host": host, "origin": f"http://{host}"})
    assert status == 200
    assert "img-src 'self'" in headers["content-security-policy"] and headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("host", ["", "evil.example", "127.0.0.1.evil.example", "[", "0.0.0.0:7860"])
def test_a_foreign_name_for_this_machine_is_refused(host: str) -> None:
    assert ask({"host": host})[0] == 403
    assert ask({"host": host}, loopback=False)[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://127.0.0.1:7860.evil.example"]
)
def test_a_foreign_page_is_refused(origin: str) -> None:
    assert ask({"host": "127.0.0.1:7860", "origin": origin})[0] == 403
    assert ask({"host": "127.0.0.1:7860", "origin": origin}, kind="websocket")[0] == 1008


def test_a_password_is_asked_of_everyone() -> None:
    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    host = {"host": "far.example"}
    status, headers = ask(host, password="sécret", loopback=False)
    assert status == 401 and headers["www-authenticate"].startswith("Basic ")
    for wrong in (basic("me:wrong"), basic("you:sécret"), "Basic !!", "Bearer sécret", basic("me:sécret") + "x"):
        assert ask({**host, "authorization": wrong}, password="sécret", loopback=False)[0] == 401
    assert ask({**host, "authorization": basic("me:sécret")}, password="sécret", loopback=False)[0] == 200
