"""Runs `llamafactory-cli` in children of one process that has the heavy libraries loaded.

A start costs seconds of imports, and the pages and examples hold dozens of commands. The program that `start` writes
hands its words, folder, environment, streams and signals to the server, which forks and calls the same `main` as the
real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
body = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(body).to_bytes(8, "big")], [0, 1, 2])
server.sendall(body)
process = int.from_bytes(server.recv(8, socket.MSG_WAITALL), "big")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda given, frame: os.kill(process, given))
code = server.recv(1)
sys.exit(code[0] if code else "the command died")
"""


@contextlib.contextmanager
def start(folder: Path) -> Iterator[Path]:
    """Start a server; the folder of the programs `llamafactory-cli` and `lmf` that use it."""
    programs = folder / "programs"
    programs.mkdir()
    address = str(folder / "socket")
    for name in ("llamafactory-cli", "lmf"):
        (programs / name).write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, address]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            yield programs
        finally:
            server.terminate()


def _serve(address: str) -> None:
    import datasets  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import peft  # noqa: F401

    from llamafactory.recipes import export, train  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    listener.settimeout(5)
    parent = os.getppid()
    os.write(1, b"ready\n")
    while os.getppid() == parent:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        with contextlib.suppress(TimeoutError):
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    """Run one command in this process and end it."""
    code = 1
    try:
        head, streams, _, _ = socket.recv_fds(connection, 8, 3)
        body = b""
        while len(body) < int.from_bytes(head, "big"):
            body += connection.recv(2**16)
        connection.sendall(os.getpid().to_bytes(8, "big"))
        words, folder, environment = json.loads(body)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["llamafactory-cli", *words]

        from llamafactory.cli import main

        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([code & 255]))
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
