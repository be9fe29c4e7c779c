"""Chunks through worker processes, results in order. A worker that dies is replaced once, then its rows are named.

Chunks are small and handed out one at a time, so no worker is left with a long tail. Knows neither rows nor tokens.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from llamafactory.errors import DataError, LlamaFactoryError

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(
    function: Callable[[T], R], items: Iterable[T], *, num_workers: int, name: Callable[[T], str]
) -> Iterator[R]:
    """Yield `function(item)` for every item, in order, computed by `num_workers` processes (by this one if below 2).

    name: describes an item when its worker dies. Raises what `function` raises, and DataError when a worker dies twice
    over the same item.
    """
    if num_workers < 2:
        yield from map(function, items)
        return
    pool = _Pool(function, num_workers, name)
    try:
        yield from pool.run(iter(items))
    finally:
        pool.close()


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    pipe: Connection
    task: tuple[int, T] | None = None
    attempts: int = 0


class _Pool(Generic[T, R]):
    def __init__(self, function: Callable[[T], R], num_workers: int, name: Callable[[T], str]) -> None:
        self._function = function
        self._name = name
        methods = multiprocessing.get_all_start_methods()
        # fork: workers inherit the tokenizer instead of importing and unpickling everything again.
        self._context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
        self._workers = [self._start() for _ in range(num_workers)]

    def run(self, items: Iterator[T]) -> Iterator[R]:
        done: dict[int, tuple[R, Exception | None]] = {}
        given = yielded = 0
        exhausted = False
        while True:
            for worker in self._workers:
                if worker.task is None and not exhausted and given - yielded < 4 * len(self._workers):
                    try:
                        self._give(worker, (given, next(items)))
                        given += 1
                    except StopIteration:
                        exhausted = True
            busy = [worker for worker in self._workers if worker.task is not None]
            if busy:
                self._collect(busy, done)
            while yielded in done:
                result, error = done.pop(yielded)
                if error is not None:
                    raise error
                yield result
                yielded += 1
            if exhausted and yielded == given:
                return

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join()

    def _start(self) -> _Worker[T]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(  # type: ignore[attr-defined]
            target=_work, args=(self._function, theirs, os.getpid()), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker[T], task: tuple[int, T]) -> None:
        worker.task = task
        try:
            worker.pipe.send(task[1])
        except OSError:
            self._replace(worker)

    def _collect(self, busy: list[_Worker[T]], done: dict[int, tuple[R, Exception | None]]) -> None:
        ready = set(wait([worker.pipe for worker in busy]))
        for worker in busy:
            if worker.pipe not in ready or worker.task is None:
                continue
            try:
                answer = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker)
                continue
            done[worker.task[0]] = answer
            worker.task, worker.attempts = None, 0

    def _replace(self, worker: _Worker[T]) -> None:
        """Start a new process for the task of a dead one; give up at the second death."""
        assert worker.task is not None
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if worker.attempts:
            raise DataError(
                f"preprocessing_num_workers: the worker process for {self._name(worker.task[1])} died twice ({how}), "
                "so these rows cannot be prepared; if memory ran out use fewer workers or a smaller "
                "preprocessing_batch_size"
            )
        fresh = self._start()
        worker.process, worker.pipe, worker.attempts = fresh.process, fresh.pipe, worker.attempts + 1
        self._give(worker, worker.task)


def _work(function: Callable[[T], R], pipe: Connection, parent: int) -> None:
    """Answer tasks until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked thread pool would never answer
    while True:
        while not pipe.poll(2):
            if os.getppid() != parent:
                return
        try:
            item = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[R | None, Exception | None] = (function(item), None)
        except LlamaFactoryError as error:
            answer = (None, error)
        except Exception:
            answer = (None, RuntimeError(f"a preprocessing worker failed:\n{traceback.format_exc()}"))
        pipe.send(answer)
