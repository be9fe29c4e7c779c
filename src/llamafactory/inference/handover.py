"""From a thread that makes tokens to the coroutine that waits for them.

Knows asyncio and threads; no model.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator

from llamafactory.inference.sampling import Token


class Outbox:
    """The tokens of one answer on their way out; made in the coroutine, filled by a thread.

    cancelled: set when nobody waits any more, so that the thread can stop.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Token | BaseException | None] = asyncio.Queue()
        self.cancelled = threading.Event()

    def put(self, item: Token | BaseException | None) -> None:
        """Hand a token over; an exception is raised to the reader, None ends the answer. Callable from any thread."""
        if self.cancelled.is_set():
            return
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
        except RuntimeError:  # the reader's event loop is closed
            self.cancelled.set()

    async def read(self) -> AsyncGenerator[Token, None]:
        """The tokens as they come; leaving early cancels the work."""
        try:
            while (item := await self._queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.cancelled.set()
