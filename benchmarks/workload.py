"""The models and the data that all contenders of a benchmark share. Everything is built on the spot from data/.

Conversations are drawn from the demo texts with a fixed seed: lengths vary widely, and about a third of the tokens are
answers.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamafactory.models.starter import build_model, build_tokenizer

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; a vocabulary larger than the tokenizer's is padded, as many published models do."""

    hidden_size: int
    num_layers: int
    num_heads: int
    vocab_size: int


SHAPES = {
    "30m": Shape(hidden_size=512, num_layers=6, num_heads=8, vocab_size=32_000),
    "128k-vocabulary": Shape(hidden_size=256, num_layers=4, num_heads=4, vocab_size=128_000),
}


def sentences() -> list[str]:
    """All sentences of the two pre-training demo files."""
    lines = (DATA / "wiki_demo.txt").read_text(encoding="utf-8").splitlines()
    lines += [json.loads(line)["text"] for line in (DATA / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()]
    return [part.strip() + "." for line in lines for part in line.split(". ") if part.strip()]


def rows(num_rows: int, *, seed: int = 0) -> Iterator[dict[str, str]]:
    """Alpaca rows: a question about a passage of log-normal length, and an answer of half its length."""
    rng, pool = random.Random(seed), sentences()
    for index in range(num_rows):
        num_passage = max(1, round(rng.lognormvariate(1.2, 0.8)))
        num_answer = max(1, round(num_passage * rng.uniform(0.2, 0.9)))
        passage = " ".join(rng.choice(pool) for _ in range(num_passage))
        answer = " ".join(rng.choice(pool) for _ in range(num_answer))
        yield {"instruction": f"Question {index}: what follows from this text?", "input": passage, "output": answer}


def write_data(folder: Path, num_rows: int) -> None:
    """Write `bench.json` with `num_rows` rows and the registry that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(list(rows(num_rows))), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps({"bench": {"file_name": "bench.json"}}), encoding="utf-8")


def write_model(folder: Path, shape: Shape) -> int:
    """Write a random model of `shape` and its tokenizer; returns the number of parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(sentences(), vocab_size=8192)
    tokenizer.save_pretrained(folder)
    model = build_model(
        tokenizer, hidden_size=shape.hidden_size, num_layers=shape.num_layers, num_heads=shape.num_heads
    )
    model.resize_token_embeddings(shape.vocab_size, mean_resizing=False)
    model.save_pretrained(folder)
    return model.num_parameters()


class Clock:
    """Processor seconds spent in a method, whoever calls it."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds, inner = 0.0, getattr(owner, name)

        def timed(*args: object, **kwargs: object) -> object:
            start = time.process_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - start

        setattr(owner, name, timed)


def run_contender(script: str, contender: str, work: Path, *words: str) -> dict[str, float]:
    """Run `script` as a process of its own that trains once as `contender`; returns the `result.json` it leaves."""
    command = [sys.executable, script, "--child", contender, "--child-folder", str(work), *words]
    log = work / f"{contender}.log"
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{contender} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return json.loads((work / "result.json").read_text(encoding="utf-8"))
