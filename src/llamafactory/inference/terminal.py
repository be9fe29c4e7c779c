"""The chat loop of a terminal or a pipe: reads what a person types, shows what the model says.

Knows lines of text and a session; loads nothing.
"""

from __future__ import annotations

import re
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from llamafactory.errors import DataError, LlamaFactoryError, did_you_mean
from llamafactory.inference.answer_parts import Shown
from llamafactory.inference.screen import answer_screen, console_for, strip_controls
from llamafactory.inference.session import Session

HELP = """\
/system TEXT  set the system message; without TEXT, show it
/tools JSON   give the model tools: a list of function schemas, or the name of a file with one; none takes them away
/image FILE   show the model an image
/clear        forget the conversation
/save FILE    write the conversation as a data set (openai messages)
/help         this list
/exit         leave, as Ctrl-D does; Ctrl-C stops an answer"""
_COMMANDS = ("/system", "/tools", "/image", "/clear", "/save", "/help", "/exit")
_BARE = {"clear": "/clear", "exit": "/exit"}
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)
_PASTE_SECONDS = 0.03


def converse(session: Session, *, source: TextIO, target: TextIO) -> int:
    """Talk until the input ends or /exit; returns the exit code.

    At a terminal it prompts and survives errors; from a pipe every line is a message, only answers are printed, and an
    error ends it.
    """
    if source.isatty() and target.isatty():
        return _Dialogue(session, target, prompt=True).run(_typed_lines(target))
    return _Dialogue(session, target, prompt=False).run(line.rstrip("\r\n") for line in source)


class _Dialogue:
    """The loop over a source of messages."""

    def __init__(self, session: Session, target: TextIO, *, prompt: bool) -> None:
        self._session = session
        self._target = target
        self._prompt = prompt
        self._console = console_for(target) if prompt else None

    def run(self, lines: Iterator[str]) -> int:
        if self._prompt:
            self._say(HELP)
        for line in lines:
            if not line.strip():
                continue
            if not self._obey(line):
                return 0
        return 0

    def _obey(self, line: str) -> bool:
        """Do what a line asks for; false when it asks to leave."""
        found = _COMMAND.fullmatch(_BARE.get(line.strip().lower(), line.strip()))
        if found is None:
            self._survive(lambda: self._answer(line))
            return True
        name, argument = found.group(1), (found.group(2) or "").strip()
        if name == "/exit":
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/tools": self._set_tools,
            "/image": self._add_image,
            "/clear": self._clear,
            "/save": self._save,
            "/help": lambda _: self._say(HELP),
        }
        action = actions.get(name, lambda _: self._unknown(name))
        self._survive(lambda: action(argument))
        return True

    def _survive(self, action: Callable[[], None]) -> None:
        """Tell a person's mistake and go on; a pipe ends with it."""
        try:
            action()
        except LlamaFactoryError as error:
            if not self._prompt:
                raise
            self._say(strip_controls(str(error)))

    def _answer(self, text: str) -> None:
        if self._prompt:
            self._write("Assistant:\n" if self._console else "Assistant: ")
        try:
            with answer_screen(self._target, self._console) as screen:
                # A pipe gets the answer as the model wrote it, with the words around its thought.
                pieces = self._session.split_answer(text) if self._prompt else map(Shown, self._session.answer(text))
                for piece in pieces:
                    screen.add(piece)
        except KeyboardInterrupt:
            if not self._prompt:
                raise
            self._say("(stopped)")
        if self._session.awaits_result:
            names = ", ".join(call.name for call in self._session.calls())
            self._say(f"(the model calls {strip_controls(names)}; your next line is the result)")

    def _set_system(self, text: str) -> None:
        if text:
            self._session.system = text
            self._say("(system message set)")
        else:
            self._say(f"(system message: {strip_controls(self._session.system) or 'none'})")

    def _set_tools(self, text: str) -> None:
        if not text:
            self._say(f"(tools: {strip_controls(self._session.tools) or 'none'})")
            return
        self._session.set_tools("" if text == "none" else _read_tools(text))
        self._say("(tools taken away)" if text == "none" else "(tools set)")

    def _add_image(self, text: str) -> None:
        raise DataError(
            f"/image: this model reads text alone, so {text or 'an image'} would not be seen; describe it in words"
        )

    def _save(self, text: str) -> None:
        if not text:
            raise DataError("/save: names no file; write for example /save talk.json")
        self._say(f"(written: {self._session.save(Path(text).expanduser())})")

    def _clear(self, _: str) -> None:
        self._session.clear()
        self._say("(conversation cleared)")

    def _unknown(self, name: str) -> None:
        raise DataError(f"{name} is not a command (choose from {', '.join(_COMMANDS)}){did_you_mean(name, _COMMANDS)}")

    def _say(self, text: str) -> None:
        """Tell the person something that is not the model's; a pipe gets answers alone."""
        if self._prompt:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self._target.write(text)
        self._target.flush()


def _read_tools(text: str) -> str:
    """Tools given as JSON, or as the name of a file that holds it."""
    if text.startswith(("[", "{")):
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"/tools: {text!r} is neither JSON nor a file that can be read; give one of them") from error


def _typed_lines(target: TextIO) -> Iterator[str]:
    """Messages typed at a terminal. Ctrl-D ends; Ctrl-C clears the line, twice at an empty line ends."""
    line_buffer = _prepare_editing()
    interrupted = False
    while True:
        try:
            text = input("User: ")
            while _more_pasted():
                text += f"\n{input()}"
        except EOFError:
            target.write("\n")
            return
        except KeyboardInterrupt:
            empty = not line_buffer()
            if interrupted and empty:
                target.write("\n")
                return
            interrupted = empty
            target.write("\n(Ctrl-C again or Ctrl-D leaves)\n" if empty else "\n")
            continue
        interrupted = False
        yield text


def _prepare_editing() -> Callable[[], str]:
    """Turn on line editing where it exists; returns a function that tells what stands on the line."""
    try:
        import readline
    except ImportError:
        return lambda: ""
    # Pasted newlines become part of the line in place of sending it.
    readline.parse_and_bind("set enable-bracketed-paste on")
    return readline.get_line_buffer


def _more_pasted() -> bool:
    """True when another line is already waiting, as after a paste into a terminal that does not mark pastes."""
    try:
        return bool(select.select([sys.stdin], [], [], _PASTE_SECONDS)[0])
    except (OSError, ValueError):
        return False
