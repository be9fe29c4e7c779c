"""Run a launcher process and leave nothing behind: forward signals, wait a grace time, then kill every descendant.

torch's launcher gives each of its workers a session of its own, so a process group is not enough: all descendants
inherit a random marker in their environment and are found by it. Knows nothing of what the processes do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARKER_VARIABLE = "LLAMAFACTORY_LAUNCH_MARKER"
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Ending:
    """How the launcher ended. signal: what we were told to stop with, or None."""

    code: int
    signal: signal.Signals | None


@dataclass
class _Requests:
    received: list[signal.Signals] = field(default_factory=list)

    def handle(self, number: int, frame: object) -> None:
        self.received.append(signal.Signals(number))


def supervise(command: Sequence[str], environment: Mapping[str, str], *, marker: str, grace_seconds: float) -> Ending:
    """Start `command` in a process group of its own and wait for its end.

    SIGINT and SIGTERM are forwarded once; after `grace_seconds`, or at the second signal, everything is killed. On
    return no process that carries `marker` is alive.
    """
    with _catching() as requests:
        process = subprocess.Popen(list(command), env=dict(environment), start_new_session=True)
        try:
            code = _wait(process, requests, grace_seconds)
        finally:
            kill_marked(marker)
            process.wait()
    return Ending(code, requests.received[0] if requests.received else None)


def kill_marked(marker: str) -> int:
    """Kill every process whose environment holds the marker; returns how many. Does nothing where /proc is missing."""
    killed = 0
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    for _ in range(20):  # a dying process may have just started another one
        found = [number for number in _process_numbers() if _kill_if(number, wanted)]
        if not found:
            break
        killed += len(found)
        time.sleep(0.05)
    return killed


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Ask the kernel to send this process a signal when its parent ends. Linux only; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(number))


def _wait(process: subprocess.Popen[bytes], requests: _Requests, grace_seconds: float) -> int:
    deadline = float("inf")
    forwarded = False
    while True:
        try:
            return process.wait(timeout=_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        if requests.received and not forwarded:
            forwarded, deadline = True, time.monotonic() + grace_seconds
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, requests.received[0])
        if time.monotonic() > deadline or len(requests.received) > 1:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _catching() -> Iterator[_Requests]:
    requests = _Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests  # only the main thread may install handlers
        return
    before = {number: signal.signal(number, requests.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _process_numbers() -> Iterator[int]:
    if sys.platform != "linux":
        return
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != own:
            yield int(entry.name)


def _kill_if(number: int, wanted: bytes) -> bool:
    """Kill one process through a handle opened before its environment is read, so that a reused number is not hit."""
    try:
        handle = os.pidfd_open(number)
    except (OSError, AttributeError):
        return False
    try:
        if wanted not in Path(f"/proc/{number}/environ").read_bytes().split(b"\0"):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
