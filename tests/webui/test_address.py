"""Where a page listens: this machine alone unless there is a password."""

from __future__ import annotations

import socket

import pytest

from llamafactory.errors import ConfigError
from llamafactory.webui.address import Address, read_address

NAMES = ("SERVER_NAME", "SERVER_PORT", "IPV6", "SHARE", "AUTH", "ROOT_PATH")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"GRADIO_{name}", raising=False)


def address(monkeypatch: pytest.MonkeyPatch, **settings: str) -> Address:
    for name, value in settings.items():
        monkeypatch.setenv(f"GRADIO_{name}", value)
    return read_address()


def test_this_machine_alone_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_address() == Address("127.0.0.1", None, None)
    assert address(monkeypatch, IPV6="1").host == "::1"


def test_others_need_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "my.example"):
        with pytest.raises(ConfigError, match=r"GRADIO_SERVER_NAME: .* can be reached .* GRADIO_AUTH=name:password"):
            address(monkeypatch, SERVER_NAME=host)
    found = address(monkeypatch, SERVER_NAME="0.0.0.0", AUTH="me:pass:word", SERVER_PORT="7999", ROOT_PATH="/x")
    assert found == Address("0.0.0.0", 7999, ("me", "pass:word"), "/x")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("SERVER_PORT", "80a", "a number from 1 to 65535"),
        ("SERVER_PORT", "70000", "a number from 1 to 65535"),
        ("AUTH", "me", "a name and a password"),
        ("AUTH", ":secret", "a name and a password"),
        ("SHARE", "1", "would open the page to everyone"),
    ],
)
def test_a_wrong_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"GRADIO_{name}: .*{why}") as error:
        address(monkeypatch, **{name: value})
    assert "secret" not in str(error.value)


def test_a_port_in_use_is_passed_over_or_told() -> None:
    with Address("127.0.0.1", None, None).listen() as first, Address("127.0.0.1", None, None).listen() as second:
        taken = first.getsockname()[1]
        assert isinstance(second, socket.socket) and second.getsockname()[1] > taken >= 7860
        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1, port {taken} .*choose another port"):
            Address("127.0.0.1", taken, None).listen()
