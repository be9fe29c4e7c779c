"""Readers keep row numbers, read any size in windows, and name the row that is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llamafactory.data import readers
from llamafactory.data.readers import Share, read_file
from llamafactory.data.sources import NamedRow, Position
from llamafactory.errors import DataError

ROWS = [{"a": "x", "n": [1, {"b": None}]}, {"a": 'ü " ] } ,', "n": []}, {"a": "z"}]


def read(path: Path, share: Share | None = None) -> list[NamedRow]:
    return list(read_file(path, path.name, Position(), share or Share()))


@pytest.mark.parametrize("window", [1, 7, 1 << 20])
@pytest.mark.parametrize("style", ["array", "indented", "lines", "objects"])
def test_json_in_any_layout_and_window(
    tmp_path: Path, style: str, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_CHUNK", window)
    texts = {
        "array": json.dumps(ROWS, ensure_ascii=False),
        "indented": "\ufeff\n" + json.dumps(ROWS, indent=2, ensure_ascii=False) + "\n\n",
        "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
        "objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    }
    path = tmp_path / ("rows.jsonl" if style == "lines" else "rows.json")
    path.write_text(texts[style], encoding="utf-8")
    assert read(path) == [(f"{path.name}:{number}", row) for number, row in enumerate(ROWS, 1)]


def test_json_lines_are_numbered_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n', encoding="utf-8")
    assert [name for name, _ in read(path)] == ["rows.jsonl:1", "rows.jsonl:3"]


def test_broken_line_is_named_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n', encoding="utf-8")
    (_, first), (name, error), (_, third) = read(path)
    assert (first, third, name) == ({"a": 1}, {"a": 3}, "rows.jsonl:2")
    assert isinstance(error, DataError)
    assert "rows.jsonl:2: the line is not valid JSON" in str(error)


def test_broken_array_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1}, {"a": 2} {"a": ]', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json:3: not valid JSON"):
        read(path)


def test_unfinished_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1},', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.json:2.*ends without '\]'"):
        read(path)


def test_row_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('["text"]', encoding="utf-8")
    assert "rows.json:1: the row is a JSON str, expected an object" in str(read(path)[0][1])


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"a": "é"}]'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(path)


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"x, y\nz"\n2,\n3,4,5\n', encoding="utf-8")
    rows = read(path)
    assert rows[0] == ("rows.csv:1", {"a": "1", "b": "x, y\nz"})
    assert rows[1] == ("rows.csv:2", {"a": "2", "b": ""})
    assert "rows.csv:3: the row has more fields" in str(rows[2][1])


def test_parquet_and_arrow(tmp_path: Path) -> None:
    table = pa.table({"a": ["x", "y", "z"], "n": [[1], [], None]})
    pq.write_table(table, tmp_path / "rows.parquet")
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("rows.parquet", "stream.arrow", "file.arrow"):
        rows = read(tmp_path / name)
        assert rows == [(f"{name}:{number}", row) for number, row in enumerate(table.to_pylist(), 1)]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_wrong_ending_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    path.write_text('[{"a": 1}]', encoding="utf-8")
    with pytest.raises(DataError, match=f"rows.{ending}: n"):
        read(path)


def test_text_is_one_row_per_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("[1] first\n\nthird", encoding="utf-8")
    assert read(path) == [
        ("rows.txt:1", {"text": "[1] first"}),
        ("rows.txt:2", {"text": ""}),
        ("rows.txt:3", {"text": "third"}),
    ]


@pytest.mark.parametrize(
    ("text", "ending"),
    [('{"text": "a"}\n', "rows.jsonl"), ('[{"text": "a"}]', "rows.json"), ('[\n {"text": "a"}\n]', "rows.json")],
)
def test_text_that_holds_json_is_refused(tmp_path: Path, text: str, ending: str) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"holds JSON.*rename it to {ending}"):
        read(path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.txt", "rows.parquet"])
def test_shares_are_disjoint_and_complete(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    rows = [{"text": str(index)} for index in range(10)]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = {"json": json.dumps(rows), "jsonl": "\n".join(map(json.dumps, rows))}
        plain = ("text\n" if name.endswith("csv") else "") + "\n".join(row["text"] for row in rows)
        path.write_text(lines.get(name.partition(".")[2], plain), encoding="utf-8")
    shares = [read(path, Share(part, 3)) for part in range(3)]
    assert [len(share) for share in shares] == [4, 3, 3]
    assert sorted(row["text"] for share in shares for _, row in share) == [str(index) for index in range(10)]


def test_position_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"a": "x" * 100}) + "\n" for _ in range(2000)), encoding="utf-8")
    position = Position()
    seen = [position.done for _ in read_file(path, path.name, position, Share())]
    assert seen == sorted(seen)
    assert 0 < seen[1000] < path.stat().st_size
    assert position.done == path.stat().st_size
