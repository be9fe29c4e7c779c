"""The chat loop, through pipes and through a real pseudo terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.inference.engines_for_tests import EchoEngine

from llamafactory.errors import DataError, ModelError
from llamafactory.inference.chat_model import ChatModel
from llamafactory.inference.screen import strip_controls
from llamafactory.inference.session import Session
from llamafactory.inference.terminal import converse

ROOT = Path(__file__).parents[2]
PROGRAM = """
    import sys
    from llamafactory.inference.chat_model import ChatModel
    from llamafactory.inference.session import Session
    from llamafactory.inference.terminal import converse
    from tests.inference.engines_for_tests import EchoEngine

    with ChatModel.from_engine(EchoEngine()) as model:
        code = converse(Session(model, system="S"), source=sys.stdin, target=sys.stdout)
    print("left", code)
    sys.exit(code)
"""


def piped(text: str) -> str:
    target = io.StringIO()
    with ChatModel.from_engine(EchoEngine()) as model:
        assert converse(Session(model), source=io.StringIO(text), target=target) == 0
    return target.getvalue()


def test_a_pipe_gets_answers_alone_line_by_line() -> None:
    assert piped("hello\n\nand you?\n") == "[] 1: hello\n[] 3: and you?\n"


@pytest.mark.parametrize("clear", ["/clear", "clear", "CLEAR"])
def test_clear_forgets_and_exit_leaves(clear: str) -> None:
    assert piped(f"a\n{clear}\nb\n/system Be kind\nc\nexit\nnever\n") == "[] 1: a\n[] 1: b\n[Be kind] 3: c\n"


def test_tools_are_checked_and_told(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text('[{"name": "add"}]', encoding="utf-8")
    session = Session(None)  # type: ignore[arg-type]
    lines = io.StringIO(f"/tools {tmp_path / 'tools.json'}\n")
    assert converse(session, source=lines, target=io.StringIO()) == 0 and session.tools == '[{"name": "add"}]'
    converse(session, source=io.StringIO("/tools none\n"), target=io.StringIO())
    assert session.tools == ""
    for line, why in (
        ("/tools [{}]", "tools must be a JSON list of function schemas, each with a name"),
        ("/tools no/such.json", "neither JSON nor a file that can be read"),
        ("/image cat.png", "reads text alone, so cat.png would not be seen"),
        ("/save", "names no file"),
        ("/save x", "nothing has been said yet"),
    ):
        with pytest.raises(DataError, match=why):
            converse(session, source=io.StringIO(f"{line}\n"), target=io.StringIO())


@pytest.mark.parametrize("text", ["/etc/passwd is a file", "/1", "a /clear b", "exit now"])
def test_text_that_only_looks_like_a_command_is_a_message(text: str) -> None:
    assert piped(f"{text}\n") == f"[] 1: {text}\n"


def test_an_error_ends_a_pipe() -> None:
    with pytest.raises(ModelError, match="does not fit"):
        piped("fail\nhello\n")


def test_a_pipe_ends_with_a_command_that_does_not_exist() -> None:
    with pytest.raises(DataError, match=r"/sistem is not a command .* did you mean '/system'"):
        piped("/sistem Be kind\nhello\n")


def test_control_sequences_of_a_model_are_inert() -> None:
    assert piped("escape\n") == "[31mred]0;title2Jback\ttab\n"
    assert strip_controls("a\x1b\x9b\x7f\x00\r\bb\n\t é 👩‍👩‍👧") == "ab\n\t é 👩‍👩‍👧"


class Terminal:
    """A program on a pseudo terminal."""

    def __init__(self, program: str) -> None:
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**os.environ, "TERM": "dumb"},
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C, as slowly as a person: in the instant after a prompt, readline would notice it a key later."""
        time.sleep(0.5)
        self.type("\x03")

    def expect(self, text: str, seconds: float = 60) -> str:
        """Wait until `text` appears; returns all that came up to and with it, and forgets it."""
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    time.sleep(0.05)
        before, found, self.seen = self.seen.partition(text)
        return before + found


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it and would hand that down


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal(PROGRAM)
    opened.expect("User: ")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.master)


@pytest.mark.slow
def test_a_terminal_prompts_and_answers(terminal: Terminal) -> None:
    terminal.type("hello\r")
    assert "Assistant: [S] 1: hello" in terminal.expect("User: ")
    terminal.type("/sytem x\r")
    assert "did you mean '/system'" in terminal.expect("User: ")
    terminal.type("fail\r")
    assert "does not fit" in terminal.expect("User: ")
    terminal.type("/exit\r")
    terminal.expect("left 0")


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(terminal: Terminal) -> None:
    terminal.type("slow\r")
    terminal.expect("word word word")
    terminal.type("\x03")
    terminal.expect("(stopped)", seconds=5)
    terminal.expect("User: ")
    terminal.type("next\r")
    assert "[S] 3: next" in terminal.expect("User: ")
    terminal.type("\x04")
    terminal.expect("left 0")


@pytest.mark.slow
def test_ctrl_c_twice_at_an_empty_prompt_leaves(terminal: Terminal) -> None:
    terminal.type("half a mess")
    terminal.expect("half a mess")
    terminal.interrupt()
    terminal.expect("User: ")
    terminal.interrupt()
    terminal.expect("Ctrl-C again")
    terminal.expect("User: ")
    terminal.type("hello\r")
    assert "[S] 1: hello" in terminal.expect("User: ")
    terminal.interrupt()
    terminal.expect("User: ")
    terminal.interrupt()
    terminal.expect("left 0")
    assert terminal.process.wait(timeout=10) == 0


@pytest.mark.slow
@pytest.mark.parametrize("paste", ["\x1b[200~one\ntwo\nthree\x1b[201~\r", "one\rtwo\rthree\r"])
def test_pasted_lines_are_one_message(terminal: Terminal, paste: str) -> None:
    terminal.type(paste)
    terminal.expect("Assistant: ")
    assert terminal.expect("User: ").replace("\r", "").startswith("[S] 1: one\ntwo\nthree\n")
