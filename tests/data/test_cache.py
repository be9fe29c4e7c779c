"""The cache: whole or absent, checked before use, shared by waiting processes that notice a dead builder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from llamafactory.data import cache
from llamafactory.data.cache import cache_root, get_or_build
from llamafactory.errors import DataError

FOLLOW = """
import os, sys, time
from llamafactory.data.cache import get_or_build
def build(folder):
    time.sleep(float(sys.argv[1]))
    if sys.argv[2] == "fail":
        from llamafactory.errors import DataError
        raise DataError("rows are bad")
    if sys.argv[2] == "die":
        os._exit(9)
    (folder / "data").write_text("x")
    return {"by": os.environ["RANK"]}
try:
    print(get_or_build("key", build).facts["by"])
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
"""


def build(folder: Path) -> Mapping[str, object]:
    (folder / "data.txt").write_text("tokens", encoding="utf-8")
    return {"rows": 3}


def fail(folder: Path) -> Mapping[str, object]:
    (folder / "half").write_text("x", encoding="utf-8")
    raise DataError("no")


def test_second_time_is_a_hit() -> None:
    first = get_or_build("key", build)
    again = get_or_build("key", fail)
    assert (first.built, again.built) == (True, False)
    assert again.facts == {"rows": 3}
    assert (again.folder / "data.txt").read_text(encoding="utf-8") == "tokens"
    assert get_or_build("other", build).built
    assert get_or_build("key", build, overwrite=True).built


@pytest.mark.parametrize("damage", ["change", "delete", "manifest"])
def test_damaged_entry_is_built_again(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = get_or_build("key", build).folder
    if damage == "change":
        (folder / "data.txt").write_text("TOKENS", encoding="utf-8")
    elif damage == "delete":
        (folder / "data.txt").unlink()
    else:
        (folder / "manifest.json").write_text("{", encoding="utf-8")
    found = get_or_build("key", build)
    assert found.built
    assert (found.folder / "data.txt").read_text(encoding="utf-8") == "tokens"


def test_failed_build_leaves_nothing() -> None:
    with pytest.raises(DataError, match="no"):
        get_or_build("key", fail)
    assert list(cache_root().iterdir()) == []


def test_folders_are_private_and_open_ones_refused() -> None:
    root = cache_root()
    assert root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o777)
    with pytest.raises(DataError, match=r"LLAMAFACTORY_CACHE: .*writable by everyone"):
        cache_root()


def test_old_leftovers_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    root = cache_root()
    for name in ("a.1.status", "b.2.tmp"):
        (root / name).mkdir()
        os.utime(root / name, (0, 0))
    get_or_build("key", build)
    assert sorted(path.suffix for path in root.iterdir()) == ["", ".status"]


def start(rank: int, seconds: float, how: str) -> subprocess.Popen[str]:
    env = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_PORT": "1"}
    command = [sys.executable, "-c", FOLLOW, str(seconds), how]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_others_wait_for_the_builder() -> None:
    processes = [start(1, 0, "well"), start(0, 1.5, "well")]
    outputs = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert outputs == ["0", "0"]


def test_failure_of_the_builder_is_told() -> None:
    waiting, building = start(1, 0, "well"), start(0, 1, "fail")
    assert "process 0 could not prepare the data: rows are bad" in waiting.communicate(timeout=60)[0]
    assert building.wait(timeout=60) == waiting.returncode == 3


def test_death_of_the_builder_ends_the_others_within_ten_seconds() -> None:
    waiting, building = start(1, 0, "well"), start(0, 2, "die")
    assert building.wait(timeout=60) == 9
    died = time.monotonic()
    assert "no sign of life" in waiting.communicate(timeout=60)[0]
    assert waiting.returncode == 3
    assert time.monotonic() - died < 10


def test_builder_that_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_FIRST_BEAT_SECONDS", 0.5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(DataError, match=r"no process has begun.*data_shared_file_system"):
        get_or_build("key", build)
