"""Failure reports: what is written, which one wins, what a person reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory import failure
from llamafactory.errors import ConfigError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", failure.REPORT_FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def caught(error: BaseException, depth: int = 1) -> BaseException:
    def fall(levels: int) -> None:
        if levels == 0:
            raise error
        fall(levels - 1)

    try:
        fall(depth)
    except BaseException as raised:
        return raised
    raise AssertionError


def test_a_bug_is_recorded_with_its_innermost_frames(tmp_path: Path) -> None:
    path = failure.record(tmp_path / "new folder", caught(ZeroDivisionError("division by zero"), depth=30))
    assert path == tmp_path / "new folder" / "error.json"
    report = failure.read(path)
    assert (report.type, report.message, report.status, report.exit_code) == (
        "ZeroDivisionError", "division by zero", "failed", 1,
    )  # fmt: skip
    assert len(report.frames) == failure.MAX_FRAMES
    assert report.frames[-1].code == "raise error"
    assert "Traceback" in report.traceback
    assert failure.to_text(report).splitlines()[-1] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ("lora_rank: got 0; give 1 or more", "lora_rank"),
        ("run.yaml:12: lora_rank: got 0; give 1 or more", "lora_rank"),
        ("The recipe is odd: truly", None),
    ],
)
def test_a_user_error_names_its_key_and_is_one_sentence(tmp_path: Path, message: str, key: str | None) -> None:
    path = failure.record(tmp_path, caught(ConfigError(message)))
    assert path is not None
    report = failure.read(path)
    assert (report.key, report.exit_code, report.type) == (key, 2, "llamafactory.errors.ConfigError")
    assert failure.to_text(report) == message


def test_the_earliest_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failure.REPORT_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, message in (("1", "the cause"), ("0", "the echo"), ("1", "a later echo")):
        monkeypatch.setenv("RANK", rank)
        failure.record("ignored", caught(RuntimeError(message)))
    (tmp_path / "rank-7.json").write_text('{"torn": ', encoding="utf-8")
    found = failure.earliest(tmp_path)
    assert found is not None
    assert (found.rank, found.message) == (1, "the cause")
    assert failure.to_text(found).splitlines()[-1] == "rank 1 of 2: RuntimeError: the cause"
    assert not Path("ignored").exists()


def test_in_a_group_without_our_launcher_the_first_report_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    failure.record(tmp_path, caught(RuntimeError("first")))
    failure.record(tmp_path, caught(RuntimeError("second")))
    assert failure.read(tmp_path / "error.json").message == "first"


def test_an_interrupt_is_an_abort(tmp_path: Path) -> None:
    path = failure.record(tmp_path, caught(KeyboardInterrupt()))
    assert path is not None
    assert failure.read(path).status == "aborted"


def test_recording_never_hides_the_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    assert failure.record(blocked, caught(RuntimeError("x"))) is None
    assert failure.record(None, caught(RuntimeError("x"))) is None


@pytest.mark.parametrize("content", ["[]", '{"status": "failed"}', "{}"])
def test_a_foreign_file_is_not_a_report(tmp_path: Path, content: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="is not a failure report"):
        failure.read(path)


def test_the_report_is_plain_json(tmp_path: Path) -> None:
    path = failure.record(tmp_path, caught(RuntimeError("größer 你好")))
    assert path is not None
    assert json.loads(path.read_text(encoding="utf-8"))["message"] == "größer 你好"
    assert "你好" in path.read_text(encoding="utf-8")
