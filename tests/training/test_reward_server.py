"""The client of a reward server: batches, and one sentence for every way a server can fail."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from tests.conftest import make_tokenizer
from tests.training.reward_server import scores, serving

from llamafactory.training.rewards import api
from llamafactory.training.rewards.api import RewardServerError, ServerReward


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


def client(url: str, timeout_seconds: float = 30.0) -> ServerReward:
    return ServerReward(url, make_tokenizer(), timeout_seconds)


def ids(*texts: str) -> list[list[int]]:
    tokenizer = make_tokenizer()
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_whole_texts_are_sent_in_batches_and_scores_come_in_order() -> None:
    seen: list[list[str]] = []

    def answer(texts: list[str]) -> bytes:
        seen.append(texts)
        return scores(len)(texts)

    texts = [f"<s>hi{'!' * index}</s>" for index in range(70)]
    with serving(answer) as url:
        assert client(url)(ids(*texts)) == [float(len(text)) for text in texts]
    assert [len(part) for part in seen] == [64, 6]
    assert seen[0] + seen[1] == texts


def test_a_server_that_recovers_is_asked_again() -> None:
    calls: list[int] = []

    def answer(texts: list[str]) -> bytes:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError  # the connection ends without an answer
        return scores(len)(texts)

    with serving(answer) as url:
        assert client(url)(ids("abc")) == [3.0]
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>busy</html>", r"answered with '<html>busy</html>', which is not JSON"),
        (b"\xff" * 100, r"answered with '.*\.\.\.', which is not JSON"),
        (b"[1.0]", r"answered with '\[1.0\]', which has no list of scores"),
        (b'{"score": 1}', "which has no list of scores"),
        (b'{"scores": 1}', "which has no list of scores"),
        (b'{"scores": [1]}', "answered with 1 scores for 2 texts"),
        (b'{"scores": [1, NaN]}', "gave the score nan, which is not a finite number"),
        (b'{"scores": [1, Infinity]}', "gave the score inf, which is not a finite number"),
        (b'{"scores": [1, "2"]}', "gave the score '2', which is not a finite number"),
        (b'{"scores": [1, null]}', "gave the score None, which is not a finite number"),
        (b'{"scores": [1, true]}', "gave the score True, which is not a finite number"),
        (b" " * 70_000, "answered with more than 66048 bytes"),
    ],
)
def test_garbage_is_refused(body: bytes, text: str) -> None:
    with serving(lambda texts: body) as url, pytest.raises(RewardServerError, match=text) as error:
        client(url)(ids("a", "b"))
    assert str(error.value).startswith(f"reward_model: the server {url} ")
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, "answered with status 500, 3 times in a row"),
        (429, "answered with status 429, 3 times in a row"),
        (404, "answered with status 404;"),
        (302, "answered with status 302;"),
    ],
)
def test_a_status_of_failure_is_told(status: int, text: str) -> None:
    with serving(scores(len), status=status) as url, pytest.raises(RewardServerError, match=text):
        client(url)(ids("a"))


def test_a_server_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "ATTEMPTS", 2)

    def hang(texts: list[str]) -> bytes:
        time.sleep(0.6)
        return scores(len)(texts)

    with serving(hang) as url, pytest.raises(RewardServerError, match=r"did not answer within 0\.2 seconds, 2 times"):
        client(url, 0.2)(ids("a"))


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(RewardServerError, match=r"could not be reached \(.*refused.*\), 3 times in a row"):
            client(url)(ids("a"))


@pytest.mark.parametrize("url", ["http://", "http://[bad", "http://127.0.0.1:99999/x"])
def test_a_url_that_means_nothing(url: str) -> None:
    with pytest.raises(RewardServerError, match="reward_model: the server http:"):
        client(url)(ids("a"))


def test_slow_bodies_end_too() -> None:
    class Drip:
        def __init__(self, step: Callable[[], None]) -> None:
            self._step = step

        def read1(self, size: int) -> bytes:
            self._step()
            return b" "

    with pytest.raises(TimeoutError):
        client("http://x", 0.05)._body(Drip(lambda: time.sleep(0.01)), 10**6)  # type: ignore[arg-type]


def test_what_is_sent() -> None:
    sent: list[str] = []
    with serving(lambda texts: json.dumps({"scores": [0 for text in texts if not sent.append(text)]}).encode()) as url:
        client(url)(ids("<|im_start|>user\nhi<|im_end|>"))
    assert sent == ["<|im_start|>user\nhi<|im_end|>"]


def test_a_body_that_drips_in_ends_with_its_time() -> None:
    """Every byte arrives within the limit of one read, all of them together do not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                with suppress(OSError):
                    for _ in range(100):
                        connection.sendall(b" ")
                        time.sleep(0.05)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        sent = time.monotonic()
        with pytest.raises(RewardServerError, match=r"did not answer within 0\.2 seconds"):
            client(f"http://127.0.0.1:{listener.getsockname()[1]}", 0.2)(ids("a"))
        assert thread.is_alive() or time.monotonic() - sent < 5.0
        thread.join()
