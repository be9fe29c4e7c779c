"""Telling a person or an editor about options: the resolved config, the help of a command, the JSON Schema.

Only makes text and plain data from the option models. Loads nothing and prints nothing itself.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from llamafactory.config.arguments import split_arguments
from llamafactory.config.availability import unavailable
from llamafactory.config.catalog import Option, options, options_of
from llamafactory.config.files import read_file
from llamafactory.config.renamed import renamed_keys
from llamafactory.config.run import RunConfig, section_types
from llamafactory.config.section import TRAIN
from llamafactory.config.violation import show, value_of

_TYPE_WORDS = {"int": "N", "float": "X", "str": "TEXT", "list": "A,B", "dict": "JSON", "bool": "true|false"}


def guess_command(words: Sequence[str]) -> str:
    """Tell from the keys which command a configuration is for; train when it holds a key that only train has."""
    file, given, _ = split_arguments(words)
    if file is not None and file.is_dir():
        return "chat"
    keys = {item.key for item in given} | ({item.key for item in read_file(file)} if file is not None else set())
    if keys & {"export_dir", "export_hub_model_id"}:
        return "export"
    if "task" in keys:
        return "eval"
    known = [options()[key] for key in keys if key in options()]
    return "train" if any(option.commands == TRAIN for option in known) or "dataset" in keys else "chat"


def describe_config(config: RunConfig, *, everything: bool = False) -> str:
    """The resolved config by section; `*` marks what is not the default, with the place it came from.

    everything: also the sections nobody touched.
    """
    blocks, untouched = [], []
    for name, model in section_types().items():
        mine = [item for item in options_of(config.command).values() if item.section == name]
        mine = [item for item in mine if everything or not item.passed_on or item.key in config.origins]
        if not mine:
            continue
        if everything or any(item.key in config.origins for item in mine):
            blocks.append(model.title + "\n" + "\n".join(_value_line(config, item) for item in mine))
        else:
            untouched.append(model.title)
    changed = sum(value_of(config, key) != item.default for key, item in options().items())
    head = f"{config.source_file or 'options'}: valid for the command {config.command!r}, {changed} values changed"
    tail = [f"At their defaults: {', '.join(untouched)} (add --all to see them)"] if untouched else []
    return "\n\n".join([head, *blocks, *_in_effect(config), *tail, *_remarks(config)])


def _value_line(config: RunConfig, option: Option) -> str:
    value = value_of(config, option.key)
    changed = value != option.default
    text = show(value) if not (option.secret and value) else "(hidden)"
    origin = config.origins.get(option.key, "" if not changed else "resolved")
    line = f"{'*' if changed else ' '} {option.key}: {text}"
    return f"{line:<60} {origin}".rstrip()


def _in_effect(config: RunConfig) -> Iterator[str]:
    if config.command not in TRAIN:
        return
    training = config.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps
    lines = [
        f"precision: {config.precision}",
        f"packing: {show(config.packs)}",
        f"examples per device and update: {batch}",
    ]
    if config.finetuning.finetuning_type == "lora":
        lines.append(f"lora scale: alpha {config.lora.alpha}, rank {config.lora.lora_rank}")
    yield "In effect\n" + "\n".join(f"  {line}" for line in lines)


def _remarks(config: RunConfig) -> Iterator[str]:
    lines = [f"Notice: {line}" for line in config.notices]
    lines += [f"Warning: {line}" for line in unavailable(config, config.command)]
    if lines:
        yield "\n".join(lines)


def describe_options(command: str) -> str:
    """Help for all options of a command, grouped by section."""
    width = min(max(shutil.get_terminal_size().columns, 60), 110)
    groups: dict[str, list[Option]] = {}
    for option in options_of(command).values():
        title = "Handed on to transformers" if option.passed_on else section_types()[option.section].title
        groups.setdefault(title, []).append(option)
    blocks = [f"{title}\n" + "\n".join(_help_lines(found, width)) for title, found in groups.items()]
    return "\n\n".join(blocks)


def _help_lines(found: Iterable[Option], width: int) -> Iterator[str]:
    for option in found:
        yield f"  --{option.key} {_type_word(option)}".rstrip()
        yield textwrap.fill(_meaning(option), width, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _meaning(option: Option) -> str:
    unit = f" Unit: {option.unit}." if option.unit else ""
    empty = option.default in (None, "", (), [])
    return f"{option.doc}{unit}" + ("" if empty or option.secret else f" Default: {show(option.default)}.")


def _type_word(option: Option) -> str:
    if option.types <= {"bool", "none"}:
        return "[true|false]"
    if option.choices:
        return "|".join(str(choice) for choice in option.choices)
    return "|".join(_TYPE_WORDS[name] for name in _TYPE_WORDS if name in option.types)


def build_schema() -> dict[str, object]:
    """JSON Schema of a configuration file, for editors; old names are marked as deprecated."""
    properties: dict[str, object] = {key: _property(option) for key, option in options().items()}
    for key in renamed_keys():
        properties.setdefault(key, {"deprecated": True, "description": "Old name; translated or reported when read."})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llamafactory configuration",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
    }


def _property(option: Option) -> dict[str, object]:
    title = "Handed on to transformers" if option.passed_on else section_types()[option.section].title
    unit = f" Unit: {option.unit}." if option.unit else ""
    schema: dict[str, object] = {"description": f"{title}: {option.doc}{unit}"}
    if option.choices:
        extra = [True, False] if "bool" in option.types else []
        schema["enum"] = [*option.choices, *extra, *([None] if "none" in option.types else [])]
    else:
        types = option.types | ({"str", "none"} if "list" in option.types else set())
        schema["type"] = [_JSON_TYPES[name] for name in sorted(types)]
    schema |= {_JSON_LIMITS[sign]: value for sign, value in option.limits}
    if not option.secret:
        schema["default"] = list(option.default) if isinstance(option.default, tuple) else option.default
    return schema


_JSON_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "list": "array"}
_JSON_TYPES |= {"dict": "object", "none": "null"}
_JSON_LIMITS = {">": "exclusiveMinimum", ">=": "minimum", "<": "exclusiveMaximum", "<=": "maximum"}
