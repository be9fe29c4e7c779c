"""Media of a request: what is read and carried on, and what nobody can make the server open or call."""

from __future__ import annotations

import asyncio
import base64
import http.server
import io
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.api.servers_for_tests import ScriptedEngine, serving

from llamafactory.api.errors import ApiError
from llamafactory.api.media import MediaLoader
from llamafactory.api.remote import Fetcher, Refused, is_public
from llamafactory.api.schema import AudioPart, ImagePart, InputAudioPart, VideoPart
from llamafactory.api.settings import Limits, Settings

LIMITS = Limits(media=3, media_bytes=3000, media_pixels=10_000, media_seconds=2)


def png(width: int = 2, height: int = 2) -> bytes:
    target = io.BytesIO()
    Image.new("1", (width, height)).save(target, "PNG")
    return target.getvalue()


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def load(part: object, settings: Settings | None = None, fetcher: Fetcher | None = None) -> bytes:
    return asyncio.run(MediaLoader(settings or Settings(limits=LIMITS), fetcher).load(part, "here"))


def refusal(url: str, settings: Settings | None = None, fetcher: Fetcher | None = None) -> str:
    with pytest.raises(ApiError) as caught:
        load(ImagePart.model_validate(image(url)), settings, fetcher)
    assert caught.value.status_code == 400
    return caught.value.detail


def test_media_reach_the_engine_in_order() -> None:
    first, second = png(), png(3, 3)
    with serving(ScriptedEngine(), Settings(limits=LIMITS), kinds=frozenset({"image", "audio", "video"})) as served:
        content = [
            {"type": "text", "text": "Compare "},
            image(data_url(first)),
            {"type": "text", "text": " with "},
            image(data_url(second)),
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}},
        ]
        ask = {"model": "m", "messages": [{"role": "user", "content": content}]}
        assert httpx.post(served.url + "/v1/chat/completions", json=ask).status_code == 200
        conversation = served.engine.asked[-1][0]
        assert conversation.messages[0].content == "Compare <image> with <image><audio>"
        assert conversation.media.images == (first, second) and conversation.media.audios == (b"RIFF",)
        content.append(image(data_url(first)))
        answer = httpx.post(served.url + "/v1/chat/completions", json=ask)
        assert answer.status_code == 400 and "4 media, at most 3" in answer.text
        content[-3:] = [{"type": "text", "text": "<image>"}]
        assert "may not hold <image>" in httpx.post(served.url + "/v1/chat/completions", json=ask).text


def test_model_without_the_modality_answers_400_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MediaLoader, "_read", lambda *_: pytest.fail("it was read"))
    with serving(ScriptedEngine()) as served:
        for part in (image("http://127.0.0.1/"), {"type": "video_url", "video_url": {"url": "/etc/passwd"}}):
            ask = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
            answer = httpx.post(served.url + "/v1/chat/completions", json=ask)
            assert answer.status_code == 400 and answer.json()["error"]["code"] == "unsupported_modality"
            assert answer.json()["error"]["param"] == "messages.0.content.0"


def test_data_urls() -> None:
    assert load(ImagePart.model_validate(image(data_url(png())))) == png()
    video = {"type": "video_url", "video_url": {"url": data_url(b"abc", "video/mp4")}}
    assert load(VideoPart.model_validate(video)) == b"abc"
    audio = {"type": "audio_url", "audio_url": {"url": data_url(b"abc", "audio/wav;codecs=1")}}
    assert load(AudioPart.model_validate(audio)) == b"abc"
    given = {"type": "input_audio", "input_audio": {"data": "YWJj", "format": "mp3"}}
    assert load(InputAudioPart.model_validate(given)) == b"abc"


def bomb() -> bytes:
    """A PNG of 20000 x 20000 pixels in a few bytes."""
    head = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    body = b"IDAT" + zlib.compress(b"")
    chunks = [
        len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in (head, body)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("url", "fact"),
    [
        ("data:image/png;base64,@@@", "base64 cannot be read"),
        ("data:image/png;base64,", "it is empty"),
        ("data:image/png,abc", "must begin like data:image/"),
        (data_url(b"abc", "video/mp4"), "must begin like data:image/"),
        (data_url(b"abc"), "it is none of PNG"),
        (data_url(b"a" * 4000), "larger than 3000 bytes"),
        (data_url(png(200, 200)), "more than 10000 pixels"),
        (data_url(bomb()), "more than 10000 pixels"),
        ("http://example.com/a.png", "fetches nothing"),
        ("a.png", "reads no files"),
        ("/etc/passwd", "reads no files"),
        ("file:///etc/passwd", "reads no files"),
    ],
)
def test_what_cannot_be_used_is_refused(url: str, fact: str) -> None:
    assert fact in refusal(url)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A media folder with a picture, and around it what must not be read."""
    folder = tmp_path / "media"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.png").write_bytes(png())
    (folder / "inner" / "b c.png").write_bytes(png())
    (folder / "big.png").write_bytes(png() + b"x" * 4000)
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "media_evil").mkdir()
    (tmp_path / "media_evil" / "a.png").write_bytes(png())
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in.png").symlink_to(folder / "a.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def test_files_below_the_folder(root: Path) -> None:
    settings = Settings(media_root=root.resolve(), limits=LIMITS)
    for url in ("a.png", str(root / "a.png"), f"file://{root}/inner/b%20c.png", "inner/../a.png", "in.png", "./a.png"):
        assert load(ImagePart.model_validate(image(url)), settings) == png()
    assert "larger than 3000 bytes" in refusal("big.png", settings)


def test_nothing_else_is_read_and_all_answers_are_one(root: Path) -> None:
    settings = Settings(media_root=root.resolve(), limits=LIMITS)
    outside = root.parent / "secret.png"
    urls = [
        "none.png", "../secret.png", str(outside), f"file://{outside}", "out.png", "up/secret.png",
        "../media_evil/a.png",
        "%2e%2e/secret.png", f"file://{root}/%2e%2e/secret.png", "a.png\0.png", "a\0", f"file://{root}/a.png%00",
        "\\\\host\\share\\a.png", "//host/share/a.png", "/proc/self/environ", "/proc/self/fd/0", "/dev/zero",
        "/dev/stdin",
        "pipe.png", "inner", "", ".", "/", "~/a.png", "x" * 5000,
    ]  # fmt: skip
    assert len({refusal(url, settings) for url in urls}) == 1


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
INSIDE = [
    "127.0.0.1", "127.255.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.1",
    "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1",
    "fe80::1%1",
    "fc00::1", "fd12::1", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "2001:0:0:0:0:0:f5ff:fffe",
]  # fmt: skip


def test_which_addresses_are_public() -> None:
    assert all(is_public(ipaddress.ip_address(address)) for address in PUBLIC)
    assert [address for address in INSIDE if is_public(ipaddress.ip_address(address))] == []


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every address a socket of this process was connected to."""
    made: list[tuple[str, int]] = []
    plain = socket.socket.connect

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        made.append(address[:2])
        plain(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return made


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://{address}/" for address in INSIDE if ":" not in address and address != "0.0.0.1"),
        *(f"http://[{address}]/" for address in INSIDE if ":" in address),
        "http://localhost/", "http://localhost./", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/",
        "http://127.1/", "http://0/", "http://[::ffff:7f00:1]/", "http://user@127.0.0.1/", "http://example.com@127.0.0.1/",
        "http://user:pass@8.8.8.8/", "http://8.8.8.8:22/", "http://8.8.8.8:99999/", "ftp://8.8.8.8/", "gopher://8.8.8.8/",
        "http:///etc/passwd", "http://", "http://[::1", "http://8.8.8.8\\@127.0.0.1/", "http://8.8.8.8#@127.0.0.1/",
        "http://①②⑦.0.0.1/", "http://127。0。0。1/", "http://8.8.8.8/ HTTP/1.1\r\nX: y", "http://%31%32%37.0.0.1/",
    ],
)  # fmt: skip
def test_inside_addresses_are_never_called(url: str, connects: list[tuple[str, int]]) -> None:
    """No name is looked up outside this machine."""

    def resolve(host: str, port: int) -> list[str]:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=0 if "localhost" in host else socket.AI_NUMERICHOST
        )
        return [str(item[4][0]) for item in found]

    fetcher = Fetcher(
        LIMITS, resolve=resolve, may_connect=lambda address: is_public(address) and str(address) != "8.8.8.8"
    )
    settings = Settings(remote_media=True, limits=LIMITS)
    refusal(url, settings, fetcher)
    assert connects == []


def test_every_address_of_a_name_must_be_public(connects: list[tuple[str, int]]) -> None:
    fetcher = Fetcher(LIMITS, resolve=lambda host, port: ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(Refused, match="not a public one"):
        fetcher.fetch("http://mixed.example/")
    assert connects == []


class Site(http.server.BaseHTTPRequestHandler):
    """Pages that behave in many ways."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        targets = {
            "/once": "/a.png", "/loop": "/loop", "/inside": f"http://127.0.0.9:{port}/a.png", "/file": "file:///etc/passwd",
            "/other": f"http://site.example:{port}/a.png", "/nowhere": None,
        }  # fmt: skip
        if self.path in targets:
            self._answer(302, b"", {"Location": targets[self.path]} if targets[self.path] else {})
        elif self.path == "/a.png":
            self.server.asked.append(dict(self.headers))
            self._answer(200, png())
        elif self.path == "/big":
            self._answer(200, b"x" * 5000)
        elif self.path == "/lies":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 5000)
            self.close_connection = True
        elif self.path == "/short":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"x" * 100)
            self.close_connection = True
        elif self.path == "/drip":
            self._drip()
        else:
            self._answer(404, b"secret words")

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        try:
            while not self.server.ended.wait(0.05):
                self.wfile.write(b"x")
        except OSError:
            return

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def site() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.ended = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


def fetcher_for(*answers: list[str], asked: list[str] | None = None, limits: Limits = LIMITS) -> Fetcher:
    """Names lead to loopback, of which 127.0.0.1 alone counts as public. answers: of the resolver, in order."""
    left = list(answers)

    def resolve(host: str, port: int) -> list[str]:
        if asked is not None:
            asked.append(host)
        if host[0].isdigit():
            return [host]
        return left.pop(0) if left else ["127.0.0.1"]

    return Fetcher(limits, resolve=resolve, may_connect=lambda address: str(address) == "127.0.0.1", ports=None)


def at(site: http.server.ThreadingHTTPServer, path: str) -> str:
    return f"http://site.example:{site.server_address[1]}{path}"


@pytest.mark.parametrize("path", ["/a.png", "/once", "/other"])
def test_public_media_are_fetched_without_proxies(
    site: http.server.ThreadingHTTPServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    settings = Settings(remote_media=True, limits=LIMITS)
    assert load(ImagePart.model_validate(image(at(site, path))), settings, fetcher_for()) == png()
    assert site.asked[-1]["Host"].startswith("site.example:")
    assert not {"Authorization", "Cookie"} & set(site.asked[-1])


@pytest.mark.parametrize(
    ("path", "fact"),
    [
        ("/loop", "redirects more than 3 times"),
        ("/inside", "not a public one"),
        ("/file", "only http and https"),
        ("/nowhere", "redirects to nowhere"),
        ("/big", "larger than 3000 bytes"),
        ("/lies", "larger than 3000 bytes"),
        ("/short", "does not answer as a server should"),
        ("/none", "does not give it away"),
    ],
)
def test_bad_sites_are_refused(
    site: http.server.ThreadingHTTPServer, path: str, fact: str, connects: list[tuple[str, int]]
) -> None:
    settings = Settings(remote_media=True, limits=LIMITS)
    found = refusal(at(site, path), settings, fetcher_for())
    assert fact in found and "secret words" not in found
    assert {host for host, _ in connects} <= {"127.0.0.1"}


def test_dripping_site_is_left(site: http.server.ThreadingHTTPServer) -> None:
    limits = replace(LIMITS, media_seconds=0.4)
    with pytest.raises(Refused, match="within the time allowed"):
        fetcher_for(limits=limits).fetch(at(site, "/drip"))


@pytest.fixture
def secure_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """The same pages over TLS, with a certificate that clients of this test trust."""
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=site.example"]
    words += ["-addext", "subjectAltName=DNS:site.example", "-keyout", key, "-out", certificate]
    subprocess.run(words, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.ended = [], threading.Event()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl to make a certificate")
def test_dripping_site_is_left_over_tls(secure_site: http.server.ThreadingHTTPServer) -> None:
    address = at(secure_site, "/a.png").replace("http:", "https:")
    assert fetcher_for(limits=LIMITS).fetch(address) == png()
    limits = replace(LIMITS, media_seconds=0.4)
    timer = threading.Timer(10, secure_site.ended.set)  # the site ends in the end, so that a failure does not hang
    timer.start()
    with pytest.raises(Refused, match="within the time allowed"):
        fetcher_for(limits=limits).fetch(address.replace("/a.png", "/drip"))
    timer.cancel()
    assert not secure_site.ended.is_set()


def test_name_that_changes_its_address(site: http.server.ThreadingHTTPServer, connects: list[tuple[str, int]]) -> None:
    """DNS rebinding: the name means a public address when it is checked and an inside one a moment later."""
    asked: list[str] = []
    fetcher = fetcher_for(["127.0.0.1"], ["127.0.0.9"], asked=asked)
    assert fetcher.fetch(at(site, "/a.png")) == png()
    assert asked == ["site.example"] and [host for host, _ in connects] == ["127.0.0.1"]
    with pytest.raises(Refused, match="not a public one"):
        fetcher.fetch(at(site, "/a.png"))
    assert [host for host, _ in connects] == ["127.0.0.1"]
    with pytest.raises(Refused, match="not a public one"):
        fetcher_for(["127.0.0.1"], ["127.0.0.9"]).fetch(at(site, "/other"))


def test_certificate_must_be_that_of_the_name(site: http.server.ThreadingHTTPServer) -> None:
    with pytest.raises(Refused, match="certificate"):
        fetcher_for().fetch(at(site, "/a.png").replace("http:", "https:"))
