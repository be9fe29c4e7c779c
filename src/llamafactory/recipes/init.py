"""The init command: build the tiny starter model and its tokenizer from the texts of a data folder. No download."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from llamafactory.errors import ConfigError, DataError

_WRITTEN = frozenset(
    {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
)
_READERS = (".json", ".jsonl", ".txt")
_SKIPPED = ("dataset_info.json",)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"init: {message}; write: llamafactory-cli {self.format_usage().removeprefix('usage: ').strip()}"
        )


def run_init(argv: Sequence[str]) -> int:
    """Build the starter model into the folder named first in `argv`; returns the exit code.

    Raises ConfigError for bad words or a folder in use, DataError when there is no text to train the tokenizer on.
    """
    options = _parse(argv)
    folder = _target(options.folder)
    texts = list(read_texts(Path(options.data_dir)))
    from llamafactory.models.compat import calm_libraries
    from llamafactory.models.starter import write_starter

    calm_libraries()
    sizes = {key: getattr(options, key) for key in ("hidden_size", "num_layers", "num_heads", "max_length", "seed")}
    write_starter(folder, texts, **sizes)
    size = (folder / "model.safetensors").stat().st_size
    sys.stdout.write(f"Wrote a random model ({size / 2**20:.1f} MiB) and its tokenizer to {folder}\n")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="init", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--data_dir", default="data")
    for key, default in (("hidden_size", 128), ("num_layers", 4), ("num_heads", 4), ("max_length", 2048)):
        parser.add_argument(f"--{key}", type=_positive, default=default)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args(list(argv))
    if options.hidden_size % (2 * options.num_heads):
        raise ConfigError(
            f"init: hidden_size {options.hidden_size} cannot be split into {options.num_heads} heads of even size; "
            f"give a multiple of {2 * options.num_heads}"
        )
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _target(name: str) -> Path:
    folder = Path(name).expanduser()
    strange = sorted(path.name for path in folder.iterdir() if path.name not in _WRITTEN) if folder.is_dir() else []
    if strange or folder.is_file():
        what = f"holds other files ({strange[0]})" if strange else "is a file"
        raise ConfigError(f"init: {name!r} {what}, and a model needs a folder of its own; name a new folder")
    return folder


def read_texts(folder: Path) -> Iterator[str]:
    """All texts of the JSON, JSONL and text files in a data folder, in file order. Raises DataError without any."""
    files = [file for file in sorted(folder.glob("*")) if file.suffix in _READERS and file.name not in _SKIPPED]
    if not files:
        raise DataError(
            f"init: {str(folder)!r} holds no .json, .jsonl or .txt file to train the tokenizer on (seen from "
            f"{Path.cwd()}); run it in the project's folder, or name one with --data_dir"
        )
    for file in files:
        yield from _texts_of(file)


def _texts_of(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        yield from text.splitlines()
        return
    documents = text.splitlines() if file.suffix == ".jsonl" else [text]
    for number, document in enumerate(documents, start=1):
        if document.strip():
            try:
                yield from _strings(json.loads(document))
            except ValueError as error:
                raise DataError(
                    f"init: {file}:{number} is not valid JSON ({error}); repair or move the file"
                ) from error


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
