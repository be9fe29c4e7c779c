"""The chat loop of a terminal or a pipe: reads what a person types, shows what the model says.

Knows lines of text and a ChatModel; loads nothing.
"""

from __future__ import annotations

import contextlib
import re
import select
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from llamafactory.errors import LlamaFactoryError, did_you_mean
from llamafactory.inference.chat_model import ChatModel
from llamafactory.rendering.records import Conversation, Message

HELP = "/system TEXT sets the system message, /clear forgets the conversation, /exit leaves; Ctrl-C stops an answer."
_COMMANDS = ("/system", "/clear", "/exit", "/help")
_BARE = {"clear": "/clear", "exit": "/exit"}
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?", re.DOTALL)
_PASTE_SECONDS = 0.03


def strip_controls(text: str) -> str:
    """Remove the characters that steer a terminal (escape, carriage return, backspace ...); newlines and tabs stay."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


@dataclass
class Session:
    """One conversation: its system message and what was said."""

    model: ChatModel
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def answer(self, text: str) -> Iterator[str]:
        """Stream the answer to `text`. What was shown before an interruption stays in the conversation."""
        asked = [*self.messages, Message("user", text)]
        said = ""
        stream = self.model.stream(Conversation(tuple(asked), system=self.system), self.model.options)
        with contextlib.closing(stream):
            try:
                for delta in stream:
                    said += delta.text
                    yield delta.text
            finally:
                if said:
                    self.messages = [*asked, Message("assistant", said)]


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
            self._answer(line)
            return True
        name, argument = found.group(1), (found.group(2) or "").strip()
        if name == "/exit":
            return False
        actions: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/clear": self._clear,
            "/help": lambda _: self._say(HELP),
        }
        actions.get(name, lambda _: self._unknown(name))(argument)
        return True

    def _answer(self, text: str) -> None:
        if self._prompt:
            self._write("Assistant: ")
        last = ""
        try:
            for piece in self._session.answer(text):
                shown = strip_controls(piece)
                last = shown or last
                self._write(shown)
        except KeyboardInterrupt:
            if not self._prompt:
                raise
            self._write("\n(stopped)")
            last = ""
        except LlamaFactoryError as error:
            if not self._prompt:
                raise
            self._write(str(error))
            last = ""
        if not last.endswith("\n"):
            self._write("\n")

    def _set_system(self, text: str) -> None:
        if text:
            self._session.system = text
            self._say("(system message set)")
        else:
            self._say(f"(system message: {strip_controls(self._session.system) or 'none'})")

    def _clear(self, _: str) -> None:
        self._session.messages = []
        self._say("(conversation cleared)")

    def _unknown(self, name: str) -> None:
        self._say(f"{name} is not a command (choose from {', '.join(_COMMANDS)}){did_you_mean(name, _COMMANDS)}")

    def _say(self, text: str) -> None:
        """Tell the person something that is not the model's; a pipe gets answers alone."""
        if self._prompt:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        self._target.write(text)
        self._target.flush()


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
