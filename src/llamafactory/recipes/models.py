"""The models command: list the catalogue, or what a search finds in it. Loads no model and asks no hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from llamafactory.errors import ConfigError, did_you_mean
from llamafactory.models.catalog import HUBS, CatalogModel, models, nearest, search

FORMATS = ("text", "json")
_TITLES = ("name", "template", "reads", "Hugging Face", "ModelScope", "Modelers")
_LEGEND = "(template): a base model, which any template can be taught to; in brackets that of its chat models"


@dataclass(frozen=True)
class Words:
    """What was asked on the command line."""

    search: str = ""
    format: str = "text"


def run_models(argv: Sequence[str]) -> int:
    """Print the models whose name or id holds the words of `argv`, all without any; returns the exit code.

    `--format json` prints one object a line: name, ids (hf, ms, om), template (used when left out, null for none),
    family_template, base, multimodal. Raises ConfigError with the nearest names when nothing is found.
    """
    words = _read(argv)
    found = search(words.search)
    if not found:
        raise ConfigError(_not_found(words.search))
    lines = _json_lines(found) if words.format == "json" else _table(found)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _read(argv: Sequence[str]) -> Words:
    wanted: list[str] = []
    chosen, rest = "text", list(argv)
    while rest:
        word = rest.pop(0)
        option, sign, value = word.partition("=")
        if option == "--format":
            chosen = value if sign else rest.pop(0) if rest else ""
            if chosen not in FORMATS:
                hint = did_you_mean(chosen, FORMATS)
                raise ConfigError(f"models --format: got {chosen!r}, expected one of {', '.join(FORMATS)}{hint}")
        elif word.startswith("-"):
            raise ConfigError(f"models: unknown option {word!r}{did_you_mean(option, ['--format'])} (known: --format)")
        else:
            wanted.append(word)
    return Words(" ".join(wanted), chosen)


def _not_found(words: str) -> str:
    near = nearest(words)
    hint = f"the nearest names are {', '.join(near)}" if near else "search for a part of a name, such as qwen3"
    return (
        f"models: none of the {len(models())} known models has {words!r} in its name or ids; {hint}. A model that is "
        "not listed can be used all the same, with `template` named or its tokenizer's own"
    )


def _json_lines(found: Sequence[CatalogModel]) -> list[str]:
    facts = ("name", *HUBS, "template", "family_template", "base", "multimodal")
    return [json.dumps({key: getattr(model, key) for key in facts}, ensure_ascii=False) for model in found]


def _table(found: Sequence[CatalogModel]) -> list[str]:
    rows = [_TITLES, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counted = f"{len(found)} of {len(models())} models"
    brackets = any(row[1].startswith("(") for row in rows)
    return [*lines, "", f"{counted}. {_LEGEND}" if brackets else counted]


def _row(model: CatalogModel) -> tuple[str, ...]:
    template = model.template or (f"({model.family_template})" if model.family_template else "-")
    reads = "text+media" if model.multimodal else "text"
    return (model.name, template, reads, *(getattr(model, hub) or "-" for hub in HUBS))
