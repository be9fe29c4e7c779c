"""A server program of somebody else, alive as long as we need it: start, wait until healthy, stop with all it began.

Knows processes and loopback HTTP; no model.
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from llamafactory.errors import ModelError

STOP_SECONDS = 10.0
_KEEPER = Path(__file__).with_name("keeper.py")


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ServerProcess:
    """A child in a process group of its own; what it prints goes to a file, whose end is told when it dies.

    It runs under `keeper`, which ends it when this process is gone without a word (SIGTERM, SIGKILL).
    """

    def __init__(self, name: str, command: Sequence[str], port: int) -> None:
        self.name = name
        self.port = port
        handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".log")
        self.log = Path(path)
        with os.fdopen(handle, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_KEEPER), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.stop)

    def wait_until_healthy(self, path: str, seconds: float) -> None:
        """Wait for status 200 at `path`. Raises ModelError, and stops the child, when it dies or time is up."""
        deadline = time.monotonic() + seconds
        while not self._is_healthy(path):
            code = self._process.poll()
            if code is not None:
                raise self._failed(f"ended with status {code} before it could answer")
            if time.monotonic() > deadline:
                raise self._failed(f"did not become ready within {seconds:.0f} seconds")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the child and every process it started; harmless when they are gone."""
        atexit.unregister(self.stop)
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.log.unlink(missing_ok=True)

    def last_line(self) -> str:
        """The last thing the child printed."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "it printed nothing"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _is_healthy(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _failed(self, what: str) -> ModelError:
        line = self.last_line()
        self.stop()
        return ModelError(f"infer_backend: the {self.name} server {what}; the last it said was: {line}")
