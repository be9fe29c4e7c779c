"""Chat from plain Python: a synchronous face over an engine, which runs in an event loop of its own.

Knows messages and engines; loads a model only through `build_engine`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from llamafactory.config import RunConfig, load_config, refuse_unavailable
from llamafactory.errors import ConfigError, DataError, did_you_mean
from llamafactory.inference.artefact import complete
from llamafactory.inference.engine import Delta, Engine, FinishReason, GenerationOptions, build_engine
from llamafactory.rendering.records import Conversation, Message, Role

_ROLES: Mapping[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "function": "function",
    "observation": "observation",
    "tool": "observation",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; the token counts include the stop token."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


class ChatModel:
    """A loaded model to talk to.

    source: a resolved config, or the mapping a YAML file would hold (`model_name_or_path`, `template` ...). Close it,
    or use it in a `with` statement, to free the model.
    """

    def __init__(self, source: RunConfig | Mapping[str, object]) -> None:
        config = complete(source if isinstance(source, RunConfig) else load_config(dict(source), command="chat"))
        refuse_unavailable(config, "chat")
        if config.finetuning.stage == "rm":
            raise ConfigError(
                f"stage: {config.model.model_name_or_path!r} is a reward model (rm), which gives scores and no "
                "answers; choose a model of another stage"
            )
        self._start(build_engine(config), GenerationOptions.from_config(config.generation))

    @classmethod
    def from_engine(cls, engine: Engine, options: GenerationOptions | None = None) -> Self:
        """Talk to an engine that is already there."""
        self = cls.__new__(cls)
        self._start(engine, options or GenerationOptions())
        return self

    def _start(self, engine: Engine, options: GenerationOptions) -> None:
        self.engine = engine
        self.options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat", daemon=True)
        self._thread.start()

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, str]],
        *,
        system: str = "",
        tools: str | Sequence[object] = "",
        **options: object,
    ) -> Reply:
        """Answer the conversation. `options` are fields of GenerationOptions that differ from the config's."""
        conversation = to_conversation(messages, system=system, tools=tools)
        deltas = list(self.stream(conversation, self._options(options)))
        last = deltas[-1]
        assert last.finish_reason is not None
        text = "".join(delta.text for delta in deltas)
        return Reply(text, last.finish_reason, last.prompt_tokens, last.completion_tokens)

    def stream_chat(
        self,
        messages: Sequence[Message | Mapping[str, str]],
        *,
        system: str = "",
        tools: str | Sequence[object] = "",
        **options: object,
    ) -> Generator[str, None, None]:
        """Like `chat`, but yields the text piece by piece; closing the generator stops the answer."""
        conversation = to_conversation(messages, system=system, tools=tools)
        for delta in self.stream(conversation, self._options(options)):
            if delta.text:
                yield delta.text

    def stream(self, conversation: Conversation, options: GenerationOptions) -> Generator[Delta, None, None]:
        """The engine's own stream, synchronously."""
        items: SimpleQueue[Delta | BaseException | None] = SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(self.engine.generate(conversation, options)) as deltas:
                    async for delta in deltas:
                        items.put(delta)
            except Exception as error:
                items.put(error)
            finally:
                items.put(None)

        future = asyncio.run_coroutine_threadsafe(pump(), self._loop)
        try:
            while (item := items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            future.cancel()

    def close(self) -> None:
        """Stop running answers and free the model; closing twice is harmless."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self.engine.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _options(self, changes: Mapping[str, object]) -> GenerationOptions:
        known = GenerationOptions.__dataclass_fields__
        for name in changes:
            if name not in known:
                raise ConfigError(
                    f"{name}: not an option of an answer (choose from {', '.join(known)}){did_you_mean(name, known)}"
                )
        return replace(self.options, **changes)  # type: ignore[arg-type]


def to_conversation(
    messages: Sequence[Message | Mapping[str, str]], *, system: str = "", tools: str | Sequence[object] = ""
) -> Conversation:
    """Build a conversation from `{"role": ..., "content": ...}` mappings or messages; a leading system message counts.

    Raises DataError when a role is unknown, the list is empty, or the last message is the assistant's.
    """
    turns = list(messages)
    first = turns[0] if turns else None
    if isinstance(first, Mapping) and first.get("role") == "system":
        system = first.get("content", "")
        turns = turns[1:]
    found = tuple(_to_message(turn, position) for position, turn in enumerate(turns, start=1))
    if not found or found[-1].role in ("assistant", "function"):
        raise DataError("messages: the last one must come from the user or a tool; add what the model shall answer")
    return Conversation(found, system=system, tools=tools if isinstance(tools, str) else json.dumps(tools))


def _to_message(turn: Message | Mapping[str, str], position: int) -> Message:
    if isinstance(turn, Message):
        return turn
    role = turn.get("role", "")
    if role not in _ROLES or "content" not in turn:
        raise DataError(
            f"messages: number {position} has the role {role!r} and the keys {', '.join(turn)}; give a role of "
            f"{', '.join(_ROLES)} and content{did_you_mean(role, _ROLES)}"
        )
    return Message(_ROLES[role], turn["content"])
