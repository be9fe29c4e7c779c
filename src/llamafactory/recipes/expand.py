"""The expand command: LLaMA Pro (arXiv:2401.02415), blocks that change nothing until they are trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from llamafactory.errors import ConfigError, did_you_mean

_KEYS = ("num_expand", "output_dir")


def run_expand(argv: Sequence[str]) -> int:
    """Write the model with `num_expand` further blocks into `output_dir`; returns the exit code.

    Raises ConfigError for bad words, ModelError for a model whose blocks cannot be made neutral.
    """
    model, count, folder = _parse(argv)
    from llamafactory.models.expand import expand_model

    layers = expand_model(model, count, folder)
    sys.stdout.write(
        f"Wrote {model} with {layers} instead of {layers - count} blocks to {folder}; train the new ones with "
        f"use_llama_pro: true and freeze_trainable_layers: {count}\n"
    )
    return 0


def _parse(argv: Sequence[str]) -> tuple[str, int, Path]:
    names = [word for word in argv if "=" not in word]
    given = dict(word.removeprefix("--").split("=", 1) for word in argv if "=" in word)
    unknown = [key for key in given if key not in _KEYS]
    if unknown:
        raise ConfigError(
            f"expand: there is no option {unknown[0]!r} (choose from {', '.join(_KEYS)})"
            f"{did_you_mean(unknown[0], _KEYS)}"
        )
    if len(names) != 1 or set(given) != set(_KEYS):
        raise ConfigError(
            "expand: needs a model, num_expand and output_dir; write: llamafactory-cli expand MODEL num_expand=N "
            "output_dir=DIR"
        )
    if not given["num_expand"].isdecimal() or int(given["num_expand"]) == 0:
        raise ConfigError(f"expand: num_expand: got {given['num_expand']!r}, expected a whole number above 0 (blocks)")
    folder = Path(given["output_dir"]).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"expand: output_dir: {str(folder)!r} is in use; name a new folder")
    return names[0], int(given["num_expand"]), folder
