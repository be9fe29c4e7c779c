"""How long the commands that need no model take to answer, next to a bare interpreter and to importing the libraries.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXAMPLE = str(ROOT / "examples" / "quickstart" / "quickstart.yaml")
CLI = [sys.executable, "-m", "llamafactory"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import torch, transformers.Trainer": [sys.executable, "-c", "import torch; from transformers import Trainer"],
    "llamafactory-cli version": [*CLI, "version"],
    "llamafactory-cli train --help": [*CLI, "train", "--help"],
    "llamafactory-cli check FILE": [*CLI, "check", EXAMPLE],
    "llamafactory-cli schema": [*CLI, "schema"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(repeats):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    print("| command | median s | slowest s |\n| --- | --- | --- |")
    for name, values in times.items():
        print(f"| `{name}` | {statistics.median(values):.2f} | {max(values):.2f} |")


if __name__ == "__main__":
    main()
