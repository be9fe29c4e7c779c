"""Write config/hf_arguments.json: name, type, default, choices and help of transformers' training arguments.

Run it after raising the transformers version: `python scripts/generate_hf_arguments.py`. A test compares the file with
the installed version.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import typing
from pathlib import Path
from types import NoneType, UnionType

import transformers
from transformers import Seq2SeqTrainingArguments

TARGET = Path(__file__).parents[1] / "src" / "llamafactory" / "config" / "hf_arguments.json"
NAMES = {bool: "bool", int: "int", float: "float", str: "str", NoneType: "none"}
SENTENCE_WITH_ADDRESS = re.compile(r"\s*[^.]*https?://\S+")


def describe(hint: object) -> tuple[list[str], list[str]]:
    """Return the plain type names and the choices that an annotation allows."""
    if typing.get_origin(hint) in {typing.Union, UnionType}:
        parts = [describe(item) for item in typing.get_args(hint)]
        return [name for names, _ in parts for name in names], [value for _, values in parts for value in values]
    if hint in NAMES:
        return [NAMES[hint]], []
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return sorted({NAMES[type(value)] for value in typing.get_args(hint)}), []
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return ["str"], [str(item.value) for item in origin]
    if origin in {list, dict}:
        return [origin.__name__], []
    return [], []


def plain_default(item: dataclasses.Field[object]) -> object:
    """Return the default as a JSON value; an enum becomes its value."""
    value = item.default
    if value is dataclasses.MISSING:
        value = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
    return value.value if isinstance(value, enum.Enum) else value


def build_table() -> dict[str, object]:
    """Return the whole table for the installed transformers."""
    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    arguments = {}
    for item in dataclasses.fields(Seq2SeqTrainingArguments):
        types, choices = describe(hints[item.name])
        choices = list(item.metadata.get("choices", choices))
        doc = SENTENCE_WITH_ADDRESS.sub("", " ".join(item.metadata["help"].split())).replace("%%", "%")
        arguments[item.name] = {
            "types": sorted(set(types)),
            "choices": choices,
            "default": plain_default(item),
            "doc": doc,
        }
    return {"transformers": transformers.__version__, "arguments": arguments}


def main() -> None:
    """Write the table next to the code that reads it."""
    text = json.dumps(build_table(), indent=1, ensure_ascii=False)
    TARGET.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
