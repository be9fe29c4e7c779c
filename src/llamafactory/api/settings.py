"""What the environment says about the server: where it listens, who may use it, and how much one request may ask for.

Knows no HTTP package, so that a mistake is told before anything heavy is imported.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from llamafactory import env
from llamafactory.errors import ConfigError
from llamafactory.hosts import LOOPBACK

NO_KEY_FLAG = "API_ALLOW_EVERYONE_WITHOUT_KEY"


@dataclass(frozen=True)
class Limits:
    """The most one request may ask for, and the server may hold.

    answers: running and waiting together. body_bytes, media_bytes: of a request and of one medium.
    prompt_chars: of all its texts. answer_seconds: until an answer is complete. body_seconds: until a request has come
    in. header_seconds: until its headers have.
    """

    answers: int = 64
    body_bytes: int = 32 * 2**20
    prompt_chars: int = 1_000_000
    new_tokens: int = 32_768
    choices: int = 8
    media: int = 8
    media_bytes: int = 10 * 2**20
    media_seconds: float = 10
    media_redirects: int = 3
    media_pixels: int = 64 * 10**6
    answer_seconds: float = 600
    body_seconds: float = 30
    header_seconds: float = 10


@dataclass(frozen=True, slots=True)
class Settings:
    """How the server runs.

    key: what clients must send as a bearer token; empty asks for none. hosts: names clients may call the server by;
    empty allows all. origins: pages of which origins may use it from a browser. media_root: the only folder local media
    are read from; None reads none. remote_media: media may be fetched from public http(s) addresses.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""
    model_name: str = "gpt-3.5-turbo"
    root_path: str = ""
    hosts: frozenset[str] = LOOPBACK
    origins: tuple[str, ...] = ()
    media_root: Path | None = None
    remote_media: bool = False
    log_requests: bool = False
    limits: Limits = Limits()


def read_settings() -> Settings:
    """The settings of the environment. Raises ConfigError for what cannot be honoured or is not safe."""
    host, key = env.text("API_HOST", "127.0.0.1"), env.text("API_KEY")
    origins = _words("API_CORS_ORIGINS")
    _refuse_unsafe(host, key, origins)
    return Settings(
        host=host,
        port=_whole("API_PORT", 8000, least=0, most=65535),
        key=key,
        model_name=env.text("API_MODEL_NAME", "gpt-3.5-turbo"),
        root_path=env.text("FASTAPI_ROOT_PATH").rstrip("/"),
        hosts=_hosts(host),
        origins=origins,
        media_root=_media_root(),
        remote_media=env.is_enabled("ALLOW_REMOTE_MEDIA"),
        log_requests=env.is_enabled("API_VERBOSE"),
        limits=_limits(),
    )


def is_loopback(host: str) -> bool:
    """True for a name or an address only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_unsafe(host: str, key: str, origins: tuple[str, ...]) -> None:
    if not is_loopback(host) and not key and not env.is_enabled(NO_KEY_FLAG):
        raise ConfigError(
            f"API_HOST: {host!r} can be reached from other machines and API_KEY is empty, so everyone there could use "
            f"the model; set API_KEY, leave API_HOST at 127.0.0.1, or set {NO_KEY_FLAG}=1"
        )
    if "*" in origins and not key:
        raise ConfigError(
            "API_CORS_ORIGINS: '*' lets every web page use the model from a visitor's browser and API_KEY is empty; "
            "set API_KEY or name the origins"
        )


def _hosts(host: str) -> frozenset[str]:
    """Names the server may be called by: a page whose name was bent to this machine does not know them."""
    given = _words("API_ALLOWED_HOSTS")
    if not is_loopback(host) and not given:
        return frozenset()
    return frozenset(name.lower() for name in (*LOOPBACK, host, *given))


def _limits() -> Limits:
    return Limits(
        answers=_whole("API_MAX_QUEUE", Limits.answers),
        body_bytes=_whole("API_MAX_BODY_BYTES", Limits.body_bytes),
        prompt_chars=_whole("API_MAX_PROMPT_CHARS", Limits.prompt_chars),
        new_tokens=_whole("API_MAX_NEW_TOKENS", Limits.new_tokens),
        choices=_whole("API_MAX_N", Limits.choices),
        media=_whole("API_MAX_MEDIA", Limits.media),
        media_bytes=_whole("API_MAX_MEDIA_BYTES", Limits.media_bytes),
        answer_seconds=_whole("API_TIMEOUT_SECONDS", int(Limits.answer_seconds)),
    )


def _media_root() -> Path | None:
    given = env.text("SAFE_MEDIA_PATH")
    if not given or not env.is_enabled("ALLOW_LOCAL_FILES", default=True):
        return None
    root = Path(given).expanduser()
    if not root.is_dir():
        raise ConfigError(
            f"SAFE_MEDIA_PATH: {given!r} is no folder; name the folder local media may be read from, or leave it out"
        )
    return root.resolve()


def _words(name: str) -> tuple[str, ...]:
    return tuple(word for part in env.text(name).split(",") if (word := part.strip().rstrip("/")))


def _whole(name: str, default: int, *, least: int = 1, most: int = 2**31) -> int:
    value = env.text(name, str(default))
    if not (value.isascii() and value.isdecimal()) or not least <= int(value) <= most:
        raise ConfigError(
            f"{name}: got {value!r} in the environment; give a whole number from {least} to {most}, or leave it out "
            f"for {default}"
        )
    return int(value)
