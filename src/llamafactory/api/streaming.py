"""Answers as server-sent events: nothing is sent before the first piece is there, so that mistakes keep their status.

Knows events and how they end, not what is in them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llamafactory.api.answering import Work
from llamafactory.api.errors import ClientGone, error_body, to_api_error

Chunks = AsyncGenerator[Mapping[str, object], None]
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
DONE = "[DONE]"


class EventStream(Response):
    """Sends chunks as they come, then `[DONE]`; an error on the way is the last event."""

    def __init__(self, chunks: Chunks, work: Work) -> None:
        super().__init__()
        self._chunks = chunks
        self._work = work
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._work.while_wanted(self._send_all(send), receive)
        except ClientGone:
            return
        except Exception as error:
            if not self._begun:
                raise
            await _send(send, to_data(error_body(to_api_error(error))), more=False)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                if not self._begun:
                    self._begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                await _send(send, to_data(chunk), more=True)
        await _send(send, f"data: {DONE}\n\n", more=False)


def to_data(body: Mapping[str, object]) -> str:
    """One event."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _send(send: Send, text: str, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
