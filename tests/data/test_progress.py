"""Progress outside a terminal: plain lines with a share and the time left."""

from __future__ import annotations

import pytest

from llamafactory.data import progress as module
from llamafactory.data.progress import progress
from llamafactory.data.sources import Position


def run(monkeypatch: pytest.MonkeyPatch, total: int, seconds: int) -> None:
    """A job of 100 updates, one every so many seconds."""
    clock = iter(range(0, 100_000, seconds))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("work") as shown:
        for done in range(1, 101):
            shown.update(Position(done if total else 0, total), done * 10)


def test_a_line_per_tenth(monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    run(monkeypatch, 100, 1)
    assert len(log_lines) == 10
    assert log_lines[4] == "work: 50 %, 500 rows, about 50 s left"
    assert log_lines[-1] == "work: 100 %, 1000 rows"


def test_a_slow_job_speaks_every_half_minute(monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    run(monkeypatch, 0, 10)
    assert 30 <= len(log_lines) <= 40
    assert log_lines[0] == "work: 30 rows"


def test_a_short_job_is_silent(monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    with progress("work") as shown:
        shown.update(Position(1, 1), 1)
    assert log_lines == []


def test_other_processes_stay_quiet(monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    run(monkeypatch, 100, 7)
    assert log_lines == []
