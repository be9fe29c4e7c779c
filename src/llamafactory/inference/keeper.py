"""Run as a program: start a command, and end it with everything it began when whoever started us is gone.

Whoever that is holds the other end of our standard input, which closes however they die. Knows nothing of what it runs;
imports only what Python brings.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 10.0


def main(command: list[str]) -> int:
    """Run the command; returns its exit code."""
    # The signal is for the command, which may take its time; a handler, unlike ignoring, is not handed down to it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end_with_owner() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
