"""The words of `check`, and the command `schema`, which prints to stdout. Loads nothing heavy."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from llamafactory.config.explain import build_schema, guess_command
from llamafactory.config.load import load_config
from llamafactory.config.run import RunConfig
from llamafactory.config.section import COMMANDS
from llamafactory.errors import ConfigError, did_you_mean


def read_check(words: Sequence[str]) -> tuple[RunConfig, bool]:
    """The configuration to check, and whether every section is to be shown (`--all`).

    `--command NAME` says which command it is for. Raises ConfigError for what is wrong with either.
    """
    rest = list(words)
    everything = "--all" in rest
    if everything:
        rest.remove("--all")
    command = _take_command(rest) or guess_command(rest)
    if not rest:
        raise ConfigError("check: no file given; write: llamafactory-cli check run.yaml")
    return load_config(rest, command=command), everything


def _take_command(rest: list[str]) -> str | None:
    """Take `--command NAME` out of the words."""
    for index, word in enumerate(rest):
        name, sign, value = word.partition("=")
        if name == "--command":
            words = rest[index : index + (1 if sign else 2)]
            del rest[index : index + len(words)]
            chosen = value if sign else "".join(words[1:])
            if chosen not in COMMANDS:
                raise ConfigError(
                    f"check: --command: got {chosen!r}, expected one of {', '.join(COMMANDS)}"
                    f"{did_you_mean(chosen, COMMANDS)}"
                )
            return chosen
    return None


def schema(words: Sequence[str]) -> None:
    """Print the JSON Schema of a configuration file."""
    if words:
        raise ConfigError(f"schema: takes no arguments, got {' '.join(words)!r}")
    sys.stdout.write(json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n")
