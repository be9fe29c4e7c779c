"""Answers on disk: what a kill leaves, what another run left, and the final file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llamafactory.errors import ConfigError
from llamafactory.inference.prediction import Answer, Task
from llamafactory.inference.prediction_file import PREDICTIONS_FILE, PredictionFile
from llamafactory.rendering.records import Conversation

FACTS = {"temperature": 0.0, "data": "abc"}
TASKS = [Task(index, "d", Conversation(()), f"ask {index}", 1, f"label {index}") for index in range(4)]
PART = "generated_predictions.part.jsonl"


def opened(folder: Path, *, rank: int = 0, overwrite: bool = False, **facts: object) -> PredictionFile:
    file = PredictionFile(folder, {**FACTS, **facts}, rank=rank)
    file.resume(overwrite=overwrite)
    return file


def test_the_final_file_has_the_order_of_the_data(tmp_path: Path) -> None:
    file = opened(tmp_path / "new" / "folder")
    for index in (2, 0, 3, 1):
        file.add(Answer(index, f"你好 {index}\n", "stop"))
    file.finish(TASKS)
    lines = (tmp_path / "new" / "folder" / PREDICTIONS_FILE).read_text(encoding="utf-8").splitlines()
    rows = [{"prompt": f"ask {n}", "predict": f"你好 {n}\n", "label": f"label {n}"} for n in range(4)]
    assert [json.loads(line) for line in lines] == rows and "你好" in lines[0]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [PREDICTIONS_FILE]


def test_a_file_cut_off_anywhere_loses_at_most_the_broken_line(tmp_path: Path) -> None:
    file = opened(tmp_path)
    for index in range(3):
        file.add(Answer(index, "é\n", "stop"))
    whole = (tmp_path / PART).read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        (tmp_path / PART).write_bytes(whole[:size])
        again = opened(tmp_path)
        assert sorted(again.answers) == list(range(max(sum(end <= size for end in ends) - 1, 0)))
        again.add(Answer(3, "new", "stop"))
        assert sorted(opened(tmp_path).answers) == [*again.answers]


def test_answers_of_another_run_are_not_mixed_in(tmp_path: Path) -> None:
    opened(tmp_path).add(Answer(0, "a", "stop"))
    with pytest.raises(ConfigError, match=r"unfinished predictions of another run \(temperature: 0.0 -> 1.0\)"):
        opened(tmp_path, temperature=1.0)
    assert opened(tmp_path, temperature=1.0, overwrite=True).answers == {}
    assert opened(tmp_path, temperature=1.0, overwrite=True).answers == {}


def test_overwriting_goes_on_with_the_same_run_and_replaces_a_finished_one(tmp_path: Path) -> None:
    file = opened(tmp_path)
    file.add(Answer(0, "a", "stop"))
    assert list(opened(tmp_path, overwrite=True).answers) == [0]
    file.finish(TASKS[:1])
    with pytest.raises(ConfigError, match=r"already holds finished predictions .* overwrite_output_dir: true"):
        opened(tmp_path)
    assert opened(tmp_path, overwrite=True).answers == {}
    assert (tmp_path / PREDICTIONS_FILE).is_file()


def test_each_process_writes_its_part_and_all_are_read(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path, rank=1)
    first.add(Answer(0, "a", "stop"))
    second.add(Answer(1, "b", "length"))
    alone = opened(tmp_path)
    assert alone.answers == {0: Answer(0, "a", "stop"), 1: Answer(1, "b", "length")}
    alone.finish(TASKS[:2])
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_FILE]
