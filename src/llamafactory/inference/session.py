"""One conversation with a model: what was said, the system message, the tools. Knows no terminal and no page."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamafactory.errors import DataError
from llamafactory.inference.answer_parts import Shown, ThoughtReader, needs_controls, to_shown
from llamafactory.inference.chat_model import ChatModel
from llamafactory.inference.engine import GenerationOptions
from llamafactory.rendering.calls import ToolCall, dump, read_function_message, read_tools
from llamafactory.rendering.chat_messages import THINK
from llamafactory.rendering.records import Conversation, Message

_CALL_WORDS = ("<tool_call>", "</tool_call>")


@dataclass
class Session:
    """One conversation: its system message, its tools (JSON text) and what was said.

    thought_words: what stands around a thought. starts_with_thought: the prompt ends with the first of them.
    marks_thoughts, marks_calls: the words around them are control tokens, so the answer must keep those.
    """

    model: ChatModel
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    tools: str = ""
    thought_words: tuple[str, str] = THINK
    starts_with_thought: bool = False
    marks_thoughts: bool = False
    marks_calls: bool = False

    @property
    def awaits_result(self) -> bool:
        """True when the model has called tools, so that the next message is a result."""
        return bool(self.messages) and self.messages[-1].role == "function"

    def answer(self, text: str, options: GenerationOptions | None = None) -> Generator[str, None, None]:
        """Stream the answer to `text`, which is a tool's result when the model has called one.

        What was shown before an interruption stays in the conversation.
        """
        asked = [*self.messages, Message("observation" if self.awaits_result else "user", text)]
        conversation = Conversation(tuple(asked), system=self.system, tools=self.tools)
        said, ended = "", False
        stream = self.model.stream(conversation, self._options(options or self.model.options))
        with contextlib.closing(stream):
            try:
                for delta in stream:
                    said += delta.text
                    yield delta.text
                ended = True
            finally:
                if said:
                    self.messages = [*asked, self._message(said) if ended else Message("assistant", said)]

    def split_answer(self, text: str, options: GenerationOptions | None = None) -> Generator[Shown, None, None]:
        """Like `answer`, with thoughts told from answers."""
        pieces = self.answer(text, options)
        reader = self.thought_reader()
        with contextlib.closing(pieces):
            for piece in pieces:
                yield from to_shown(*reader.push(piece))
        yield from to_shown(*reader.finish())

    def thought_reader(self) -> ThoughtReader:
        """What tells the thought from the answer in a text of this model."""
        return ThoughtReader(self.thought_words, begun=self.starts_with_thought)

    def clear(self) -> None:
        """Forget what was said; system message and tools stay."""
        self.messages = []

    def set_tools(self, text: str) -> None:
        """Give the model tools, as JSON text; empty text takes them away. Raises DataError."""
        read_tools(text, "tools")
        self.tools = text.strip()

    def calls(self) -> list[ToolCall]:
        """The tool calls of the last answer; none when it is text."""
        return calls_of(self.messages[-1])[1] if self.awaits_result else []

    def save(self, path: Path) -> Path:
        """Write the conversation as a data set of one row that the format `openai` reads; returns the file.

        Raises DataError when there is nothing to write, the file exists, or it cannot be written.
        """
        if not self.messages:
            raise DataError("save: nothing has been said yet; ask something first")
        path = path if path.suffix else path.with_suffix(".json")
        if path.exists():
            raise DataError(f"save: {path} exists already and is kept; give another name")
        staged = path.with_name(f".{path.name}.tmp")
        try:
            staged.write_text(json.dumps([self._row()], indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            staged.replace(path)
        except OSError as error:
            raise DataError(f"save: {path} cannot be written ({error.strerror}); give another place") from error
        return path

    def _options(self, options: GenerationOptions) -> GenerationOptions:
        """With the control tokens that tell thoughts and calls from the answer, where they are such."""
        if self.marks_thoughts or (self.tools and self.marks_calls):
            return replace(options, skip_special_tokens=False)
        return options

    def _message(self, said: str) -> Message:
        """An answer as a message: tool calls, behind its thought, where the model has tools and called some."""
        calls = self.model.engine.renderer.parse_tools(said, self.tools) if self.tools else said
        if isinstance(calls, str):
            return Message("assistant", said)
        closing = self.thought_words[1]
        thought = said[: said.find(closing) + len(closing)] + "\n\n" if closing in said else ""
        return Message("function", thought + dump([{"name": call.name, "arguments": call.arguments} for call in calls]))

    def _row(self) -> dict[str, object]:
        first = [{"role": "system", "content": self.system}] if self.system else []
        row: dict[str, object] = {"messages": [*first, *to_openai(self.messages)]}
        return row | ({"tools": self.tools} if self.tools else {})


def new_session(model: ChatModel) -> Session:
    """A session that knows how the model's template marks thoughts."""
    renderer = model.engine.renderer
    words = renderer.reasoning_words or THINK
    prompt = renderer.text(Conversation((Message("user", "a"),)), generation=True)
    return Session(
        model,
        thought_words=words,
        starts_with_thought=prompt.rstrip().endswith(words[0]),
        marks_thoughts=needs_controls(renderer, words, calls=False),
        marks_calls=needs_controls(renderer, calls=True),
    )


def calls_of(message: Message) -> tuple[str, list[ToolCall]]:
    """The text before the calls of a `function` message, and the calls."""
    return read_function_message(message.content, _CALL_WORDS, "conversation")


def to_openai(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages as OpenAI writes them; results carry the ids of the calls they answer, in order."""
    found: list[dict[str, object]] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "function":
            text, calls = calls_of(message)
            waiting = [f"call_{len(found)}_{place}" for place in range(len(calls))]
            spelled = [
                {"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
                for id, call in zip(waiting, calls, strict=True)
            ]
            found.append({"role": "assistant", "content": text, "tool_calls": spelled})
        elif message.role == "observation":
            call_id = waiting.pop(0) if waiting else f"call_{len(found)}"
            found.append({"role": "tool", "tool_call_id": call_id, "content": message.content})
        else:
            found.append({"role": message.role, "content": message.content})
    return found
