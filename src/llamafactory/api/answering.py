"""Run the answers to one request, while its client is there, the server runs and there is time.

Knows engines and HTTP messages, no bodies.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.types import Receive

from llamafactory.api.errors import ApiError, ClientGone
from llamafactory.api.gate import Gate
from llamafactory.api.metrics import Metrics
from llamafactory.inference.engine import Delta, Engine, GenerationOptions
from llamafactory.rendering.records import Conversation

T = TypeVar("T")
Prompt = Conversation | str


@dataclass(frozen=True)
class Work:
    """What every request needs. stopping: set when the server ends, and running answers with it."""

    engine: Engine
    gate: Gate
    metrics: Metrics
    answer_seconds: float
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def answers(
        self, prompts: Sequence[tuple[Prompt, GenerationOptions]]
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """The pieces of several answers as they come, each with the number of its prompt.

        Closing the generator stops all of them. Raises ApiError 429 when there is no room.
        """
        start, seen = time.monotonic(), set[int]()
        with self.gate.enter(len(prompts)) as place:
            async with aclosing(self._merged(prompts)) as pieces:
                async for number, delta in pieces:
                    if number not in seen:
                        seen.add(number)
                        place.started += 1
                        self.metrics.first_token.observe(time.monotonic() - start)
                    if delta.finish_reason is not None:
                        self.metrics.prompt_tokens.inc(delta.prompt_tokens)
                        self.metrics.completion_tokens.inc(delta.completion_tokens)
                    yield number, delta

    async def while_wanted(self, work: Coroutine[object, object, T], receive: Receive) -> T:
        """The result of `work`, which is cancelled as soon as nobody waits for it or it may not go on.

        Raises ClientGone when the client left, ApiError when the server stops or time is up.
        """
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_disconnected(receive))
        stop = asyncio.create_task(self.stopping.wait())
        try:
            await asyncio.wait({task, gone, stop}, timeout=self.answer_seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGone
            if stop.done():
                raise ApiError(503, "The server is stopping; ask again when it is back", code="stopping")
            raise ApiError(408, f"The answer was not complete after {self.answer_seconds:g} seconds", code="timeout")
        finally:
            await _cancel([task, gone, stop])

    async def _merged(
        self, prompts: Sequence[tuple[Prompt, GenerationOptions]]
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()

        async def pump(number: int, prompt: Prompt, options: GenerationOptions) -> None:
            try:
                async with aclosing(self.engine.generate(prompt, options)) as deltas:
                    async for delta in deltas:
                        queue.put_nowait((number, delta))
            except Exception as error:
                queue.put_nowait(error)
            finally:
                queue.put_nowait(None)

        tasks = [asyncio.create_task(pump(number, *prompt)) for number, prompt in enumerate(prompts)]
        left = len(tasks)
        try:
            while left:
                item = await queue.get()
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            await _cancel(tasks)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


async def _cancel(tasks: Sequence[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
