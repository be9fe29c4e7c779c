"""Local files and folders as sources."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llamafactory.data.catalog import DatasetEntry
from llamafactory.data.sources import Access
from llamafactory.data.sources.file import load
from llamafactory.errors import DataError

MakeEntry = Callable[..., DatasetEntry]


def write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"n": index} for index in range(count)]), encoding="utf-8")


def test_folder_is_one_set_in_name_order(tmp_path: Path, make_entry: MakeEntry) -> None:
    write(tmp_path / "set" / "b.json", 1)
    write(tmp_path / "set" / "a.json", 2)
    write(tmp_path / "set" / "deep" / "c.json", 1)
    write(tmp_path / "set" / ".hidden.json", 9)
    rows = load(make_entry(file_name="set"), Access(tmp_path))
    assert [name for name, _ in rows.read()] == ["set/a.json:1", "set/a.json:2", "set/b.json:1", "set/deep/c.json:1"]


def test_fingerprint_follows_the_bytes_and_names(tmp_path: Path, make_entry: MakeEntry) -> None:
    path = tmp_path / "set.json"
    write(path, 2)
    prints = [load(make_entry(), Access(tmp_path)).fingerprint()]
    assert load(make_entry(), Access(tmp_path)).fingerprint() == prints[0]
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    prints.append(load(make_entry(), Access(tmp_path)).fingerprint())
    path.rename(tmp_path / "other.json")
    prints.append(load(make_entry(file_name="other.json"), Access(tmp_path)).fingerprint())
    assert len(set(prints)) == 3


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (["set.json"], "sett.json", r"file_name: .*does not exist.*did you mean 'set\.json'\?"),
        (["set.xml"], "set.xml", r"ends in '\.xml'.*readable: json, jsonl, csv"),
        (["set/a.json", "set/b.csv"], "set", "mixes csv, json files"),
        (["set/.a"], "set", "holds no files"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, make_entry: MakeEntry, files: list[str], name: str, message: str) -> None:
    for file in files:
        write(tmp_path / file, 1)
    with pytest.raises(DataError, match=message):
        load(make_entry(file_name=name), Access(tmp_path))
