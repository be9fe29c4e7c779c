"""A foreign server never outlives us."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OWNER = """
import sys, time
from llamafactory.inference.server_process import ServerProcess
child = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
server = ServerProcess("stand-in", [sys.executable, "-c", child], 1)
while server.last_line() == "it printed nothing":
    time.sleep(0.05)
print(server.last_line(), server.log, flush=True)
time.sleep(300)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_when_its_owner_is_killed(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, log = owner.stdout.readline().split()
        assert is_alive(int(pid))
        owner.send_signal(number)
        owner.wait(10)
        deadline = time.monotonic() + 10
        while is_alive(int(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_alive(int(pid))
        Path(log).unlink()
