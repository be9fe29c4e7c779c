"""The server's environment: safe by default, and refused in a sentence where it is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafactory.api.serve import listening
from llamafactory.api.settings import NO_KEY_FLAG, Settings, read_settings
from llamafactory.errors import ConfigError

NAMES = (
    "API_HOST", "API_PORT", "API_KEY", "API_MODEL_NAME", "API_VERBOSE", "FASTAPI_ROOT_PATH", "SAFE_MEDIA_PATH",
    "ALLOW_LOCAL_FILES", "ALLOW_REMOTE_MEDIA", "API_CORS_ORIGINS", "API_ALLOWED_HOSTS", "API_MAX_QUEUE", NO_KEY_FLAG,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def read(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return read_settings()


def test_defaults_are_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch)
    assert (settings.host, settings.port, settings.key, settings.model_name) == ("127.0.0.1", 8000, "", "gpt-3.5-turbo")
    assert settings.origins == () and settings.media_root is None and not settings.remote_media
    assert settings.hosts == {"localhost", "127.0.0.1", "::1"} and not settings.log_requests


@pytest.mark.parametrize("host", ["0.0" + ".0.0", "::", "192.168.1.5", "example.org"])
def test_other_hosts_need_a_key_or_the_flag(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with pytest.raises(ConfigError, match=r"API_HOST: .* set API_KEY, leave API_HOST at 127\.0\.0\.1"):
        read(monkeypatch, API_HOST=host)
    assert read(monkeypatch, API_KEY="secret").hosts == frozenset()
    monkeypatch.setenv("API_KEY", " ")
    assert read(monkeypatch, **{NO_KEY_FLAG: "1"}).key == ""


def test_values_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = read(
        monkeypatch, API_PORT="0", API_MODEL_NAME="mine", FASTAPI_ROOT_PATH="/llm/", SAFE_MEDIA_PATH=str(tmp_path),
        ALLOW_REMOTE_MEDIA="yes", API_CORS_ORIGINS="https://a.example, https://b.example/", API_ALLOWED_HOSTS="Box",
        API_MAX_QUEUE="3", API_VERBOSE="1",
    )  # fmt: skip
    assert (settings.port, settings.model_name, settings.root_path) == (0, "mine", "/llm")
    assert settings.media_root == tmp_path.resolve() and settings.remote_media and settings.log_requests
    assert settings.origins == ("https://a.example", "https://b.example") and "box" in settings.hosts
    assert settings.limits.answers == 3
    assert read(monkeypatch, ALLOW_LOCAL_FILES="0").media_root is None


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("API_PORT", "http", "API_PORT: got 'http' in the environment; give a whole number from 0 to 65535"),
        ("API_MAX_QUEUE", "0", "API_MAX_QUEUE: got '0'"),
        ("SAFE_MEDIA_PATH", "/no/such/folder", "SAFE_MEDIA_PATH: '/no/such/folder' is no folder"),
        ("API_CORS_ORIGINS", "*", "API_CORS_ORIGINS: '\\*' lets every web page"),
    ],
)
def test_wrong_values_are_told(monkeypatch: pytest.MonkeyPatch, name: str, value: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        read(monkeypatch, **{name: value})


def test_taken_port_is_told() -> None:
    with listening(Settings(port=0)) as sock:
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"), listening(Settings(port=port)):
            pass
