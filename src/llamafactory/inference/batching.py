"""Continuous batching: one thread decodes all running answers together, one token each per step.

Answers join between two steps after their own prompt was read, in the order they came, and leave at once when they are
done, fail, or nobody waits for them any more. Knows answers and the decoder; no text and no event loop.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from llamafactory.errors import ModelError
from llamafactory.inference.alone import closed_error
from llamafactory.inference.engine import EngineFailure
from llamafactory.inference.handover import Outbox
from llamafactory.inference.row_cache import RowDecoder
from llamafactory.inference.sampling import Answer, Token, choose

PROMPT_TOKENS = 512  # most tokens of prompts read between two steps: running answers never wait longer for new ones


@dataclass(eq=False)
class _Request:
    """An answer on its way. num_read: tokens of the prompt that `cache` holds."""

    answer: Answer
    outbox: Outbox
    cache: DynamicCache | None = None
    num_read: int = field(default=0)

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the newest one."""
        return len(self.answer.prompt) + len(self.answer.tokens) - 1

    def deliver(self, token: Token | ModelError) -> bool:
        """Hand the newest token over; false when the answer ends with it."""
        self.outbox.put(token)
        if isinstance(token, ModelError) or self.answer.is_finished:
            self.outbox.put(None)
            return False
        return True

    def fail(self, error: BaseException) -> None:
        self.outbox.put(error)
        self.outbox.put(None)


class BatchRunner:
    """Runs at most max_rows answers together; the others wait in line."""

    def __init__(self, model: PreTrainedModel, *, max_rows: int) -> None:
        self._decoder = RowDecoder(model, max_rows=max_rows)
        self._max_rows = max_rows
        self._waiting: deque[_Request] = deque()
        self._entering: _Request | None = None
        self._rows: list[_Request] = []
        self._wake = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def submit(self, answer: Answer, outbox: Outbox) -> None:
        """Put an answer in line; tokens, an exception, and at the end None go to `outbox`."""
        request = _Request(answer, outbox)
        with self._wake:
            if self._closing:
                request.fail(closed_error())
                return
            self._waiting.append(request)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
                self._thread.start()
            self._wake.notify()

    def close(self) -> None:
        """End every answer with an error and wait for the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while self._wait_for_work():
                self._drop_cancelled()
                self._read_prompts()
                self._step()
        self._decoder.clear()
        entering = [self._entering] if self._entering else []
        for request in (*self._rows, *entering, *self._waiting):
            request.fail(closed_error())
        self._rows.clear()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; false when it is time to end."""
        with self._wake:
            if not (self._rows or self._entering or self._waiting or self._closing):
                self._decoder.clear()
            while not (self._rows or self._entering or self._waiting or self._closing):
                self._wake.wait()
            return not self._closing

    def _drop_cancelled(self) -> None:
        self._keep([not request.outbox.cancelled.is_set() for request in self._rows])
        if self._entering and self._entering.outbox.cancelled.is_set():
            self._entering = None
        with self._wake:
            self._waiting = deque(request for request in self._waiting if not request.outbox.cancelled.is_set())

    def _read_prompts(self) -> None:
        """Let answers in while there are rows, reading up to PROMPT_TOKENS tokens of their prompts."""
        budget = PROMPT_TOKENS
        while budget > 0:
            if self._entering is None:
                with self._wake:
                    if not self._waiting or len(self._rows) == self._max_rows:
                        return
                    self._entering = self._waiting.popleft()
            request = self._entering
            try:
                budget -= self._read(request, budget)
            except Exception as error:
                self._entering = None
                request.fail(_explained(error))

    def _read(self, request: _Request, budget: int) -> int:
        """Read a piece of a prompt; after the last one the answer has its first token and a row. Returns its size."""
        if request.cache is None:
            request.cache = self._decoder.new_cache()
        piece = request.answer.prompt[request.num_read : request.num_read + budget]
        logits = self._decoder.read(piece, request.cache)
        request.num_read += len(piece)
        if request.num_read == len(request.answer.prompt):
            (token,) = choose(logits, [request.answer])
            if request.deliver(token):
                self._decoder.insert(len(self._rows), request.cache)
                self._rows.append(request)
            request.cache = self._entering = None
        return len(piece)

    def _step(self) -> None:
        """One more token for every row."""
        if not self._rows:
            return
        answers = [request.answer for request in self._rows]
        try:
            logits = self._decoder.step(
                [answer.tokens[-1] for answer in answers], [request.length for request in self._rows]
            )
            tokens = choose(logits, answers)
        except torch.OutOfMemoryError as error:
            longest = max(self._rows, key=lambda request: request.length)
            longest.fail(_explained(error))
            self._keep([request is not longest for request in self._rows])
            return
        except Exception as error:
            for request in self._rows:
                request.fail(error)
            self._rows.clear()
            return
        self._keep([request.deliver(token) for request, token in zip(self._rows, tokens, strict=True)])

    def _keep(self, wanted: list[bool]) -> None:
        """Drop the rows that are not wanted; the last row takes the place of each."""
        for row in reversed(range(len(wanted))):
            if wanted[row]:
                continue
            last = self._rows.pop()
            if row < len(self._rows):
                self._decoder.move(len(self._rows), row, last.length)
                self._rows[row] = last


def _explained(error: Exception) -> Exception:
    if isinstance(error, torch.OutOfMemoryError):
        return EngineFailure(
            "there is not enough memory for this answer beside the others; shorten it, or lower MAX_CONCURRENT in the "
            "environment"
        )
    return error
