"""Rows per second from a JSON file to tokens and labels, against the bare Rust tokenizer on the same text and core.

    python benchmarks/preprocessing.py

Ours reads the file, checks and converts the rows, renders the template, tokenizes, builds the labels and writes the
cache. The tokenizer only turns the rendered text, already in memory, into ids. Both use one process and one thread, in
turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from workload import SHAPES, rows, write_data, write_model

TURN = "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n{output}<|im_end|>\n"


def run_ours(work: Path) -> tuple[float, int]:
    """Seconds and number of tokens of one cold run."""
    from llamafactory.config import load_config
    from llamafactory.data.pipeline import build_datasets
    from llamafactory.models.tokenizer import load_tokenizer
    from llamafactory.rendering.renderer import build_renderer

    options = {
        "model_name_or_path": str(work / "model"), "do_train": True, "dataset": "bench", "template": "chatml",
        "dataset_dir": str(work / "data"), "output_dir": str(work / "out"), "cutoff_len": 4096, "overwrite_cache": True,
    }  # fmt: skip
    config = load_config(options, command="train")
    renderer = build_renderer(load_tokenizer(config).tokenizer, config.template)
    start = time.perf_counter()
    train = build_datasets(config, renderer).train
    seconds = time.perf_counter() - start
    return seconds, sum(len(ids) for ids in train["input_ids"])


def run_tokenizer(work: Path, texts: list[str]) -> tuple[float, int]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "model" / "tokenizer.json"))
    start = time.perf_counter()
    num_tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    return time.perf_counter() - start, num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_model(work / "model", SHAPES["128k-vocabulary"])
        write_data(work / "data", arguments.rows)
        texts = [TURN.format(**row) for row in rows(arguments.rows)]
        pairs = [(run_tokenizer(work, texts), run_ours(work)) for _ in range(arguments.repeats)]
    raw = statistics.median(pair[0][0] for pair in pairs)
    ours = statistics.median(pair[1][0] for pair in pairs)
    print(f"{arguments.rows} rows, {pairs[0][1][1]} tokens (bare tokenizer: {pairs[0][0][1]}), one core\n")
    print("| | rows/s | seconds (all runs) |\n| --- | --- | --- |")
    for name, median, index in (("bare tokenizer", raw, 0), ("llamafactory", ours, 1)):
        print(f"| {name} | {arguments.rows / median:.0f} | {', '.join(f'{p[index][0]:.2f}' for p in pairs)} |")
    print(f"\nRatio: {ours / raw:.2f}x the time of the bare tokenizer.")


if __name__ == "__main__":
    main()
