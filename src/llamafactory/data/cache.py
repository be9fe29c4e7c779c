"""A content-addressed cache of prepared data: entries appear whole or not at all, and are checked before use.

In a run of several processes one builds and the others follow its status file, whose age is its heartbeat. No
collective is open meanwhile, so preparing may take hours. Knows nothing of what an entry holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from llamafactory import env
from llamafactory.errors import DataError, LlamaFactoryError
from llamafactory.logs import get_logger

_LOGGER = get_logger(__name__)
_MANIFEST = "manifest.json"
_BEAT_SECONDS = 1.0
_DEAD_SECONDS = 8.0
_FIRST_BEAT_SECONDS = 600.0

Build = Callable[[Path], Mapping[str, object]]
"""Fills a folder and returns facts to keep with it (JSON values)."""


@dataclass(frozen=True)
class Found:
    """A complete entry: its folder, the facts its builder returned, and whether it had to be built."""

    folder: Path
    facts: Mapping[str, object]
    built: bool = False


def cache_root() -> Path:
    """Folder of the cache: LLAMAFACTORY_CACHE, else ~/.cache/llamafactory. Created for this user alone.

    Raises DataError when it belongs to somebody else or anyone may write to it.
    """
    given = os.environ.get("LLAMAFACTORY_CACHE")
    root = Path(given).expanduser() if given else Path.home() / ".cache" / "llamafactory"
    folder = root / "tokenized"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (root, folder):
        status = path.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & stat.S_IWOTH):
            raise DataError(
                f"LLAMAFACTORY_CACHE: {path} belongs to another user or is writable by everyone, so its content "
                "cannot be trusted; set LLAMAFACTORY_CACHE to a folder of your own"
            )
    return folder


def find(key: str) -> Found | None:
    """The entry `key`, or None when it is missing or damaged."""
    return _open(cache_root() / key, checked=False)


def get_or_build(key: str, build: Build, *, overwrite: bool = False, shared: bool = False) -> Found:
    """Return the entry `key`, built by one process when it is missing, damaged or to be overwritten.

    shared: one process of the whole group builds, not one on each machine. Raises what `build` raises; on the waiting
    processes DataError when the builder failed or died.
    """
    root = cache_root()
    status = root / f"{key}.{_job(shared)}.status"
    if (env.rank() if shared else env.local_rank()) != 0:
        _follow(status)
        return _open(root / key, checked=True) or _lost(root / key)
    with _status(status):
        found = None if overwrite else _open(root / key, checked=False)
        return found or _build(root / key, build)


def _build(target: Path, build: Build) -> Found:
    staged = target.with_name(f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    staged.mkdir(mode=0o700)
    try:
        facts = build(staged)
        files = {path.name: _checksum(path) for path in sorted(staged.iterdir())}
        _write(staged / _MANIFEST, {"files": files, "facts": facts})
        for path in staged.iterdir():
            _sync(path)
        _put(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Found(target, facts, built=True)


def _put(staged: Path, target: Path) -> None:
    """Move a finished entry to its place, over an older one if need be."""
    for _ in range(3):
        try:
            staged.rename(target)
            _sync(target.parent)
        except OSError:
            aside = target.with_name(f"{target.name}.{secrets.token_hex(4)}.old.tmp")
            with suppress(FileNotFoundError):
                target.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            return
    raise DataError(f"cache: cannot move the prepared data to {target}, another process keeps writing there; try again")


def _open(folder: Path, *, checked: bool) -> Found | None:
    """Read a complete entry; a damaged one is reported and counts as missing."""
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        whole = checked or all(_checksum(folder / name) == checksum for name, checksum in manifest["files"].items())
        if whole:
            return Found(folder, manifest["facts"])
        why = "its checksum does not match"
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = str(error)
    _LOGGER.warning("cache: the entry %s is damaged (%s); building it again", folder.name, why)
    return None


def _lost(folder: Path) -> Found:
    raise DataError(
        f"cache: process 0 prepared {folder}, but this process cannot read it; set data_shared_file_system: false "
        "unless all machines see the same folder"
    )


@contextmanager
def _status(path: Path) -> Iterator[None]:
    """Keep a status file fresh while the block runs, then say how it ended. Alone, nothing is written."""
    if env.world_size() == 1:
        yield
        return
    _remove_old(path.parent)
    stop = threading.Event()
    _write(path, {"state": "building"})
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield
    except BaseException as error:
        stop.set()
        beat.join()
        message = str(error) if isinstance(error, LlamaFactoryError) else f"{type(error).__name__}: {error}"
        _write(path, {"state": "failed", "message": message})
        raise
    stop.set()
    beat.join()
    _write(path, {"state": "done"})


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_SECONDS):
        with suppress(FileNotFoundError):
            os.utime(path)


def _follow(path: Path) -> None:
    """Wait until the builder is done. Raises DataError when it failed, died or never began."""
    began = changed = time.monotonic()
    seen = 0
    spoke = began
    while True:
        state, stamp = _read_status(path)
        now = time.monotonic()
        if stamp != seen:
            seen, changed = stamp, now
        if state.get("state") == "done":
            return
        if state.get("state") == "failed":
            raise DataError(f"process 0 could not prepare the data: {state.get('message')}")
        if seen and now - changed > _DEAD_SECONDS:
            raise DataError(
                f"the process that prepares the data has given no sign of life for {_DEAD_SECONDS:.0f} s, so it has "
                "died; look for its error above and start again"
            )
        if not seen and now - began > _FIRST_BEAT_SECONDS:
            raise DataError(
                f"no process has begun to prepare the data within {_FIRST_BEAT_SECONDS:.0f} s (status file {path}); "
                "check that all processes see this folder, and data_shared_file_system"
            )
        if now - spoke > 60:
            spoke = now
            _LOGGER.info("waiting for process 0 to prepare the data (%.0f s)", now - began)
        time.sleep(0.2)


def _read_status(path: Path) -> tuple[Mapping[str, str], int]:
    try:
        return json.loads(path.read_text(encoding="utf-8")), path.stat().st_mtime_ns
    except (OSError, ValueError):
        return {}, 0


def _job(shared: bool) -> str:
    """A name that all processes of this launch, and no other launch, share."""
    names = ["MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"]
    parts = [os.environ.get(name, "") for name in names]
    parts += ["" if shared else f"{os.uname().nodename} {os.getppid()}"]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _remove_old(root: Path, seconds: float = 86400) -> None:
    """Remove status files and unfinished entries that nobody has touched for a day."""
    for path in root.iterdir():
        with suppress(FileNotFoundError):
            if path.suffix in {".status", ".tmp"} and time.time() - path.stat().st_mtime > seconds:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, value: object) -> None:
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    staged.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
