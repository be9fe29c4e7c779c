"""Answers on disk, so that a killed prediction goes on where it was.

While a run lasts, `generated_predictions.part.jsonl` holds one line about the run and one for every answer, as they
were finished. At its end `generated_predictions.jsonl` holds {"prompt", "predict", "label"} in the order of the data,
and the part is gone. Several processes write a part each and read all of them. Knows no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from llamafactory.errors import ConfigError
from llamafactory.inference.prediction import Answer, Task
from llamafactory.logs import get_logger

PREDICTIONS_FILE = "generated_predictions.jsonl"
PART_FILE = "generated_predictions.part{}.jsonl"
Facts = Mapping[str, object]
_LOGGER = get_logger(__name__)


class PredictionFile:
    """The answers of one run in `folder`; this process writes the part of `rank`.

    facts: what the answers depend on. answers: those already there, by index.
    """

    def __init__(self, folder: Path, facts: Facts, *, rank: int = 0) -> None:
        self._folder = folder
        self._facts = json.loads(json.dumps(facts))
        self._path = folder / PART_FILE.format(f"-{rank}" if rank else "")
        self.answers: dict[int, Answer] = {}

    def resume(self, *, overwrite: bool = False) -> None:
        """Read the answers of an unfinished run and make ready for more.

        overwrite: answers of another run, or of a finished one, are given up. Raises ConfigError for such answers
        otherwise.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        parts = self._parts()
        if (self._folder / PREDICTIONS_FILE).is_file() and not parts and not overwrite:
            raise ConfigError(
                f"output_dir: '{self._folder}' already holds finished predictions ({PREDICTIONS_FILE}); choose another "
                "output_dir, or set overwrite_output_dir: true to replace them when the new ones are complete"
            )
        for path in parts:
            self._read(path, overwrite=overwrite)
        if self._path not in self._parts():
            self._write_line({"run": self._facts})
        elif self.answers:
            _LOGGER.info("%s: going on after %d answers", self._path, len(self.answers))

    def discard(self) -> None:
        """Remove the parts of any run."""
        for path in self._parts():
            path.unlink(missing_ok=True)

    def add(self, answer: Answer) -> None:
        """Write one answer at once."""
        self.answers[answer.index] = answer
        self._write_line(asdict(answer))

    def finish(self, tasks: Sequence[Task]) -> None:
        """Write the final file, in the order of `tasks`, all of which are answered, and remove the parts."""
        staged = self._folder / f".{PREDICTIONS_FILE}.tmp"
        with staged.open("w", encoding="utf-8") as file:
            for task in tasks:
                row = {"prompt": task.prompt, "predict": self.answers[task.index].text, "label": task.label}
                file.write(_json(row))
        staged.replace(self._folder / PREDICTIONS_FILE)
        self.discard()

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(PART_FILE.format("*")))

    def _write_line(self, content: Mapping[str, object]) -> None:
        with self._path.open("ab") as file:
            file.write(_json(content).encode("utf-8"))

    def _read(self, path: Path, *, overwrite: bool) -> None:
        """Take the answers of one part over; a half-written end is cut off, if the part is this process's own."""
        lines, whole = _whole_lines(path.read_bytes())
        facts = lines[0].get("run") if lines else None
        if not lines and path != self._path:
            return  # another process is just beginning it
        if facts != self._facts:
            if lines and not overwrite:
                raise ConfigError(self._other_run(facts))
            path.unlink(missing_ok=True)
            return
        if path == self._path and path.stat().st_size > whole:
            with path.open("rb+") as file:
                file.truncate(whole)
        for line in lines[1:]:
            answer = Answer(**line)  # type: ignore[arg-type]
            self.answers[answer.index] = answer

    def _other_run(self, facts: object) -> str:
        before = facts if isinstance(facts, Mapping) else {}
        changed = [
            f"{key}: {_short(before.get(key))} -> {_short(value)}"
            for key, value in self._facts.items()
            if before.get(key) != value
        ]
        return (
            f"output_dir: '{self._folder}' holds unfinished predictions of another run ({'; '.join(changed)}); choose "
            "another output_dir, restore the settings to go on, or set overwrite_output_dir: true to give them up"
        )


def _whole_lines(content: bytes) -> tuple[list[dict[str, object]], int]:
    """The JSON objects of a file up to the first broken line, and how many bytes they fill."""
    found: list[dict[str, object]] = []
    size = 0
    for line in content.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            found.append(json.loads(line))
        except ValueError:
            break
        size += len(line)
    return found, size


def _json(content: Mapping[str, object]) -> str:
    return json.dumps(content, ensure_ascii=False) + "\n"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
