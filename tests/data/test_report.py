"""Reports add up, survive JSON, and say everything in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory.data.report import Report, write_report
from llamafactory.errors import DataError


def sample() -> Report:
    report = Report(read=9, kept=3, tokens=100, supervised=40)
    for number in range(1, 6):
        report.drop("longer than cutoff_len", f"a.json:{number}")
    report.truncated.add("a.json:7")
    report.reject(DataError("a.json:8: bad"))
    return report


def test_sum_and_json() -> None:
    total = Report()
    total.merge(sample())
    total.merge(Report.from_json(json.loads(json.dumps(sample().to_json()))))
    assert (total.read, total.kept, total.num_bad, total.num_dropped) == (18, 6, 2, 10)
    assert total.truncated.first == ["a.json:7", "a.json:7"]
    assert total.dropped["longer than cutoff_len"].first == ["a.json:1", "a.json:2", "a.json:3"]


def test_line() -> None:
    assert sample().line() == (
        "3 of 9 rows kept; 1 truncated (first: a.json:7); 5 dropped: longer than cutoff_len (first: a.json:1, "
        "a.json:2, a.json:3); 1 bad rows skipped; 100 tokens, 40 % supervised"
    )


def test_many_bad_rows_are_summed_up() -> None:
    report = Report()
    for number in range(1, 201):
        report.reject(DataError(f"a.json:{number}: bad"))
    with pytest.raises(
        DataError, match=r"a: 200 rows cannot be used: a\.json:1: bad .*a\.json:5: bad \(and 195 more\)"
    ):
        report.raise_if_bad("a")
    assert len(report.bad) == 100


def test_written_whole(tmp_path: Path) -> None:
    path = write_report({"a": sample()}, tmp_path / "out")
    assert [found.name for found in path.parent.iterdir()] == ["data_report.json"]
    assert json.loads(path.read_text(encoding="utf-8"))["a"]["kept"] == 3
