"""Worker processes: results in order, errors and deaths reported with the rows they concern."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from llamafactory.data.workers import map_ordered
from llamafactory.errors import DataError


def name(item: int) -> str:
    return f"row {item}"


def slow_square(item: int) -> int:
    time.sleep(0.02 if item % 3 else 0.08)
    return item * item


@pytest.mark.parametrize("num_workers", [1, 3])
def test_results_come_in_order(num_workers: int) -> None:
    items = list(range(20))
    assert list(map_ordered(slow_square, items, num_workers=num_workers, name=name)) == [item**2 for item in items]


def test_work_is_shared() -> None:
    assert len(set(map_ordered(lambda _: (time.sleep(0.05), os.getpid())[1], range(8), num_workers=2, name=name))) == 2


def test_user_errors_come_through() -> None:
    def refuse(item: int) -> int:
        raise DataError(f"row {item} is bad")

    with pytest.raises(DataError, match="row 0 is bad"):
        list(map_ordered(refuse, range(5), num_workers=2, name=name))


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(map_ordered(lambda item: 1 // item, range(2), num_workers=2, name=name))


def test_worker_that_dies_once_is_replaced(tmp_path: Path) -> None:
    def die_once(item: int) -> int:
        mark = tmp_path / "died"
        if item == 3 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(map_ordered(die_once, range(6), num_workers=2, name=name)) == list(range(6))
    assert (tmp_path / "died").exists()


def test_worker_that_keeps_dying_is_named() -> None:
    def die(item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(DataError, match=r"worker process for row 3 died twice \(signal SIGKILL\).*fewer workers"):
        list(map_ordered(die, range(6), num_workers=2, name=name))
