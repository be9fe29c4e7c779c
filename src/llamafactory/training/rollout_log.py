"""`rollouts.jsonl`: some answers of every round, to see what the policy does for its reward. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

ROLLOUT_FILE = "rollouts.jsonl"
SAMPLES_PER_ROUND = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: token ids, its score as the reward model gave it, its log-ratio to the reference in nats."""

    prompt: list[int]
    response: list[int]
    score: float
    kl: float


class RolloutLog:
    """Appends the first samples of each round, one JSON object a line; writes nothing without a folder.

    A run that goes on from a checkpoint first drops the rounds behind it, so every round stands there once.
    """

    def __init__(self, folder: Path | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self._path = None if folder is None else folder / ROLLOUT_FILE
        self._tokenizer = tokenizer
        self._started = False

    def write(self, step: int, samples: Iterable[Sample]) -> None:
        """Add a round whose answers were sampled after `step` updates."""
        if self._path is None:
            return
        if not self._started:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _keep_before(self._path, step)
            self._started = True
        lines = [self._line(step, sample) for sample in islice(samples, SAMPLES_PER_ROUND)]
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)

    def _line(self, step: int, sample: Sample) -> str:
        text = {
            name: self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for name, ids in (("prompt", sample.prompt), ("response", sample.response))
        }
        return json.dumps({"step": step, **text, "score": sample.score, "kl": sample.kl}, ensure_ascii=False)


def _keep_before(path: Path, step: int) -> None:
    """Drop lines of this and later steps; a half-written last line is dropped too."""
    if not path.is_file():
        return
    kept = [line for line in path.read_text(encoding="utf-8").split("\n") if 0 <= _step(line) < step]
    staged = path.with_name(f".{path.name}.tmp")
    staged.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    staged.replace(path)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1
