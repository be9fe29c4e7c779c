"""Who may come in and how much at once: keys, names, origins, sizes, times, places in the queue."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import pytest
from tests.api.servers_for_tests import ScriptedEngine, Served, serving

from llamafactory.api import guard
from llamafactory.api.settings import Limits, Settings

WEB = httpx.Client(trust_env=False, timeout=30)
KEY = {"Authorization": "Bearer secret"}
LIMITS = Limits(answers=3, body_bytes=20_000, body_seconds=0.4, header_seconds=0.4, answer_seconds=20)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(ScriptedEngine(), Settings(key="secret", limits=LIMITS)) as served:
        yield served


def body(text: str, **more: object) -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this never happened"
        time.sleep(0.01)


def error_of(response: httpx.Response) -> dict[str, object]:
    return response.json()["error"]


def test_every_route_asks_for_the_key(served: Served) -> None:
    routes = {(method, route.path) for route in served.app.routes for method in route.methods or ()}
    known = {path for _, path in routes}
    assert {"/health", "/metrics", "/docs", "/openapi.json", "/v1/chat/completions", "/v1/score/evaluation"} <= known
    for method, path in [*sorted(routes), ("GET", "/nowhere"), ("GET", "/health/"), ("POST", "//health")]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            response = WEB.request(method, served.url + path, headers=headers)
            assert response.status_code == (200 if path == "/health" and method == "GET" else
                                            405 if path == "/health" else 401), (method, path)  # fmt: skip
    assert error_of(WEB.get(served.url + "/v1/models"))["code"] == "invalid_api_key"


def test_key_is_compared_in_constant_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    plain = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or plain(a, b))
    assert WEB.get(served.url + "/v1/models", headers=KEY).status_code == 200
    assert WEB.get(served.url + "/v1/models").status_code == 401
    assert compared == [(b"secret", b"secret"), (b"", b"secret")]


def test_web_sockets_are_refused(served: Served) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "a"}
    assert WEB.get(served.url + "/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", ""])
def test_foreign_host_is_refused(served: Served, host: str) -> None:
    response = WEB.get(served.url + "/v1/models", headers={**KEY, "Host": host})
    assert response.status_code == 403 and error_of(response)["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "LOCALHOST.", "[::1]:80"])
def test_own_names_are_allowed(served: Served, host: str) -> None:
    assert WEB.get(served.url + "/v1/models", headers={**KEY, "Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example"])
def test_foreign_origin_is_refused(served: Served, origin: str) -> None:
    headers = {**KEY, "Origin": origin}
    response = WEB.post(served.url + "/v1/chat/completions", headers=headers, json=body("Hi"))
    assert response.status_code == 403 and error_of(response)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in response.headers


def test_own_origin_is_allowed(served: Served) -> None:
    headers = {**KEY, "Origin": served.url}
    assert WEB.post(served.url + "/v1/chat/completions", headers=headers, json=body("Hi")).status_code == 200


def test_body_of_another_kind_is_refused(served: Served) -> None:
    """A page can send text/plain to any server without asking it first."""
    text = json.dumps(body("Hi"))
    headers = {**KEY, "Content-Type": "text/plain"}
    assert WEB.post(served.url + "/v1/chat/completions", headers=headers, content=text).status_code == 400


def test_named_origins_may_come_without_credentials() -> None:
    with serving(ScriptedEngine(), Settings(key="secret", origins=("https://a.example",))) as served:
        ask = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
        answer = WEB.options(served.url + "/v1/chat/completions", headers=ask)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-credentials" not in answer.headers
        other = WEB.options(served.url + "/v1/chat/completions", headers={**ask, "Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
        sent = "authorization, content-type, x-stainless-lang, x-stainless-retry-count"
        openai_js = {**ask, "Access-Control-Request-Headers": sent}
        assert WEB.options(served.url + "/v1/chat/completions", headers=openai_js).status_code == 200
        posted = WEB.post(served.url + "/v1/chat/completions", headers={**KEY, **ask}, json=body("Hi"))
        assert posted.status_code == 200


def chunked(text: bytes) -> Iterator[bytes]:
    for start in range(0, len(text), 1000):
        yield text[start : start + 1000]


@pytest.mark.parametrize("wrap", [lambda text: text, chunked], ids=["with a length", "chunked"])
def test_large_body_is_refused(served: Served, wrap: Callable[[bytes], object]) -> None:
    text = json.dumps(body("x" * 30_000)).encode()
    headers = {**KEY, "Content-Type": "application/json"}
    response = WEB.post(served.url + "/v1/chat/completions", headers=headers, content=wrap(text))
    assert response.status_code == 413 and "20000 bytes" in error_of(response)["message"]


@pytest.mark.parametrize(
    "text", ["{", "[" * 5000, '{"a":' * 4000 + "1" + "}" * 4000, "", "null", "[]", '"x"', '{"model": "\\ud800"}']
)
def test_strange_bodies_are_mistakes(served: Served, text: str) -> None:
    headers = {**KEY, "Content-Type": "application/json"}
    response = WEB.post(served.url + "/v1/chat/completions", headers=headers, content=text)
    assert response.status_code in (400, 413) and error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"a": {"description": "\ud800"}}},
        {"properties": {"\udfff": {}}},
        {"type": {"a": 1}},
        {"properties": {"a": {"items": 5}}},
        {"required": [{"a": 1}]},
    ],
)
def test_strange_tools_are_mistakes(served: Served, parameters: object) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    text = json.dumps(body("Hi", tools=tools))
    headers = {**KEY, "Content-Type": "application/json"}
    response = WEB.post(served.url + "/v1/chat/completions", headers=headers, content=text)
    assert response.status_code == 400 and "tools.0.function" in error_of(response)["message"]


@contextmanager
def raw(served: Served) -> Iterator[socket.socket]:
    parts = urlsplit(served.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
        yield sock


def test_slow_headers_are_hung_up_on(served: Served) -> None:
    with raw(served) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        assert sock.recv(100) == b""
    with raw(served) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += sock.recv(4000)
        sock.sendall(b"GET /health HTTP/1.1\r\n")
        assert sock.recv(100) == b""


def test_slow_body_is_refused(served: Served) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\n"
    with raw(served) as sock:
        sock.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert b"408" in sock.recv(4000)


def test_more_than_the_queue_holds_is_no_reason_to_try_again(served: Served) -> None:
    prompts = {"model": "m", "prompt": ["a"] * 5}
    response = WEB.post(served.url + "/v1/completions", headers=KEY, json=prompts)
    assert response.status_code == 400 and "retry-after" not in response.headers
    assert "asks for 5 answers" in error_of(response)["message"]


def test_full_queue_answers_429_until_there_is_room(served: Served) -> None:
    url = served.url + "/v1/chat/completions"
    with WEB.stream("POST", url, headers=KEY, json=body("slow", stream=True)) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        response = WEB.post(url, headers=KEY, json=body("Hi", n=3))
        assert response.status_code == 429 and int(response.headers["retry-after"]) >= 1
        assert error_of(response)["type"] == "rate_limit_error"
        assert WEB.post(url, headers=KEY, json=body("Hi", n=2)).status_code == 200
        assert WEB.get(served.url + "/health").json() == {"status": "ok"}
        numbers = WEB.get(served.url + "/metrics", headers=KEY).text
        assert "llamafactory_answers_running 1.0" in numbers
    wait_until(lambda: served.engine.running == 0)
    assert WEB.post(url, headers=KEY, json=body("Hi", n=3)).status_code == 200


@pytest.mark.parametrize("text", ["slow", "stuck"])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_client_frees_its_place(served: Served, text: str, stream: bool) -> None:
    parts = urlsplit(served.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port)
    headers = {**KEY, "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body(text, stream=stream, n=2)), headers)
    wait_until(lambda: served.engine.running == 2)
    connection.close()
    wait_until(lambda: served.engine.running == 0)
    assert served.app.state.work.gate.running == served.app.state.work.gate.waiting == 0


def test_answer_that_takes_too_long_is_ended() -> None:
    limits = replace(LIMITS, answer_seconds=0.3)
    with serving(ScriptedEngine(), Settings(limits=limits)) as served:
        url = served.url + "/v1/chat/completions"
        assert WEB.post(url, json=body("stuck")).status_code == 408
        with WEB.stream("POST", url, json=body("slow", stream=True)) as answer:
            events = [line for line in answer.iter_lines() if line]
        assert answer.status_code == 200 and json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        assert served.engine.running == 0


def test_stopping_server_ends_running_answers() -> None:
    with serving(ScriptedEngine()) as served:
        url = served.url + "/v1/chat/completions"
        with WEB.stream("POST", url, json=body("slow", stream=True)) as answer:
            lines = answer.iter_lines()
            next(lines)
            served.stop()
            events = [line for line in lines if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "stopping"
        assert served.engine.running == 0


def test_requests_are_counted(served: Served) -> None:
    for headers in (KEY, {}):
        WEB.post(served.url + "/v1/completions", headers=headers, json={"model": "m", "prompt": "abc"})
    numbers = WEB.get(served.url + "/metrics", headers=KEY).text
    assert 'llamafactory_requests_total{route="/v1/completions",status="200"} 1.0' in numbers
    assert 'status="401"' in numbers
    for name in ("prompt_tokens_total", "completion_tokens_total", "first_token_seconds_count", "answers_waiting"):
        assert f"llamafactory_{name}" in numbers


def test_root_path(served: Served) -> None:
    with serving(ScriptedEngine(), Settings(root_path="/llm", key="secret")) as served:
        assert WEB.get(served.url + "/llm/health").status_code == 200
        assert WEB.get(served.url + "/llm/v1/models").status_code == 401
        assert WEB.get(served.url + "/llm/v1/models", headers=KEY).status_code == 200
