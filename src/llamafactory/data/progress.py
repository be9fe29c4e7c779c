"""One line of progress: a live bar on a terminal, a plain line per tenth elsewhere. Knows no data."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from llamafactory import env
from llamafactory.data.sources import Position
from llamafactory.logs import get_logger

_LOGGER = get_logger(__name__)


class Progress(Protocol):
    """Takes news of how far a job is."""

    def update(self, position: Position, rows: int) -> None:
        """Show `position` and the number of rows done."""
        ...


class _Quiet:
    def update(self, position: Position, rows: int) -> None:
        pass


class _Lines:
    """A line per tenth of the job, or every 30 seconds when the total is unknown."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._tenth = 0
        self._spoke = self._began = time.monotonic()

    def update(self, position: Position, rows: int) -> None:
        now = time.monotonic()
        tenth = 10 * position.done // position.total if position.total else 0
        if now - self._began < 2 or (tenth <= self._tenth and now - self._spoke < 30):
            return
        self._tenth, self._spoke = tenth, now
        share = f"{100 * position.done // position.total} %, " if position.total else ""
        left = (now - self._began) * (position.total / position.done - 1) if position.done and position.total else 0
        _LOGGER.info("%s: %s%d rows%s", self._title, share, rows, f", about {left:.0f} s left" if left >= 1 else "")


class _Bar:
    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[rows]} rows"),
            TimeRemainingColumn(),
        )
        self.live = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._task = self.live.add_task(title, total=None, rows=0)

    def update(self, position: Position, rows: int) -> None:
        self.live.update(self._task, completed=position.done, total=position.total or None, rows=rows)


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show a job's progress on the first process of each machine; the others stay quiet."""
    if env.local_rank() != 0:
        yield _Quiet()
    elif not sys.stderr.isatty():
        yield _Lines(title)
    else:
        bar = _Bar(title)
        with bar.live:
            yield bar
