"""A small engine without a model, for tests of what stands above engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from llamafactory.errors import ModelError
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.rendering.records import Conversation


class EchoEngine:
    """Answers with the system message, the number of turns and the last message.

    `slow` as the last message gives words for ten minutes, `fail` a ModelError, `escape` terminal control sequences.
    """

    def __init__(self) -> None:
        self.running = 0
        self.closed = False

    async def generate(self, conversation: Conversation, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        last = conversation.messages[-1].content
        if last == "fail":
            raise ModelError("The prompt does not fit; shorten it")
        self.running += 1
        try:
            for number, text in enumerate(self._texts(conversation, last)):
                yield Delta(text, None, 1, number + 1)
                await asyncio.sleep(0.02 if last == "slow" else 0)
            yield Delta("", "stop", 1, number + 2)
        finally:
            self.running -= 1

    async def close(self) -> None:
        self.closed = True

    def _texts(self, conversation: Conversation, last: str) -> list[str]:
        if last == "slow":
            return ["word "] * 30000
        if last == "escape":
            return ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "back\b\r\ttab\n"]
        return [f"[{conversation.system}]", f" {len(conversation.messages)}", f": {last}"]
