"""`load_config`: a file, a mapping or arguments become one checked `RunConfig`, or one error that lists all faults.

Orders the steps: read, translate old names, match keys, give types, build sections, find folders, compare sections.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from llamafactory import env
from llamafactory.config.arguments import split_arguments
from llamafactory.config.artefact import read_run_folder
from llamafactory.config.catalog import Option, options, options_of
from llamafactory.config.coerce import coerce, mismatch
from llamafactory.config.files import read_file
from llamafactory.config.given import Given
from llamafactory.config.paths import find_folders
from llamafactory.config.renamed import meant_keys, renamed_keys, translate
from llamafactory.config.rules import ineffective, violations
from llamafactory.config.run import RunConfig, section_types
from llamafactory.config.section import COMMANDS, Section
from llamafactory.config.suggest import nearest
from llamafactory.errors import ConfigError

Source = Path | str | Mapping[str, object] | Sequence[str]


@dataclasses.dataclass
class _Draft:
    """What has been found so far. doubted: keys that already have a fault, so rules about them stay silent."""

    command: str
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    ignored: list[str] = dataclasses.field(default_factory=list)
    doubted: set[str] = dataclasses.field(default_factory=set)
    given: dict[str, Given] = dataclasses.field(default_factory=dict)
    values: dict[str, object] = dataclasses.field(default_factory=dict)


def load_config(source: Source, command: str = "train") -> RunConfig:
    """Read, translate, check and freeze all options of one run of `command`.

    source: a YAML or JSON file, a run folder (for commands that use a model), a mapping, or command-line words such as
    `["run.yaml", "lora_rank=16", "--bf16"]`. Raises ConfigError that lists every fault, one line each.
    """
    if command not in COMMANDS:
        raise ConfigError(f"command {command!r} takes no configuration (commands that do: {', '.join(COMMANDS)})")
    draft = _Draft(command)
    file, layers = _gather(source, draft)
    for layer in layers:
        _add_layer(draft, layer)
    for key, given in draft.given.items():
        _type_value(draft, key, given)
    config = _build(draft, file)
    config = dataclasses.replace(config, notices=_notices(draft, config, file))
    for violation in violations(config):
        if not draft.doubted.intersection(violation.keys):
            draft.problems.append(violation.sentence(config))
    if draft.problems:
        raise ConfigError(_summary(sorted(draft.problems, key=_line), file))
    return config


def _gather(source: Source, draft: _Draft) -> tuple[Path | None, list[list[Given]]]:
    """Return the file and the layers of values, weakest first."""
    if isinstance(source, Mapping):
        return None, [[Given(str(key), _unpath(value), None, "options") for key, value in source.items()]]
    words = [str(source)] if isinstance(source, str | Path) else source
    file, arguments, problems = split_arguments(words)
    draft.problems.extend(problems)
    if file is None:
        return None, [arguments]
    if file.is_dir():
        return file, [read_run_folder(file, draft.command), arguments]
    if not file.exists() and file.suffix.lower() not in {".yaml", ".yml", ".json"}:
        raise ConfigError(f"{file}: is neither a file nor key=value; give a .yaml or .json file or a run folder")
    return file, [read_file(file), arguments]


def _unpath(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _add_layer(draft: _Draft, layer: list[Given]) -> None:
    """Translate and match the values of one file or command line; a later layer replaces values of an earlier one."""
    fresh: dict[str, Given] = {}
    renamed: set[str] = set()
    for item in layer:
        translation = translate(item, options())
        if translation.note:
            draft.notes.append(translation.note)
        if translation.problem:
            draft.problems.append(translation.problem)
            draft.doubted.update(_possible_keys(item.key))
        for new in translation.given:
            if not _matches(draft, new):
                continue
            if new.path:
                _merge_inner(draft, fresh, new)
            elif new.key in fresh and (new.key in renamed or translation.note) and not item.from_argument:
                _settle(draft, fresh, new)
            else:
                fresh[new.key] = new
            if translation.note:
                renamed.add(new.key)
    draft.given.update(fresh)


def _possible_keys(old: str) -> set[str]:
    rule = renamed_keys()[old]
    keys = {str(rule[verb]) for verb in ("to", "invert") if verb in rule}
    values = rule.get("values")
    return keys.union(*values.values()) if isinstance(values, Mapping) else keys


def _settle(draft: _Draft, fresh: dict[str, Given], new: Given) -> None:
    """Two keys of one file mean the same: keep the one that is not the default, or report the conflict."""
    old, default = fresh[new.key], options()[new.key].default
    try:
        first, second = (coerce(item, options()[new.key]) for item in (old, new))
    except ValueError:
        return
    if first in (default, second):
        fresh[new.key] = new
    elif second != default:
        draft.problems.append(
            f"{new.place}: {new.key}: got {second} here and {first} at {old.place} under another name; keep one of them"
        )


def _matches(draft: _Draft, item: Given) -> bool:
    """True when the command accepts the key; else record why not."""
    option = options().get(item.key)
    if option is not None and draft.command in option.commands:
        return True
    if env.is_enabled("ALLOW_EXTRA_ARGS"):
        draft.ignored.append(item.key)
        return False
    if option is not None:
        draft.problems.append(_belongs_elsewhere(item, option, draft.command))
        return False
    meant = meant_keys().get(item.key) or nearest(item.key, {*options_of(draft.command), *renamed_keys()})
    if meant:
        draft.doubted.update(_possible_keys(meant) if meant in renamed_keys() else {meant})
    hint = f"did you mean {meant!r}?" if meant else _hint_elsewhere(item.key, draft.command)
    draft.problems.append(f"{item.place}: {item.key}: unknown option; {hint}")
    return False


def _hint_elsewhere(key: str, command: str) -> str:
    """What to do about a key like none of this command: name the command that has one like it, or the list."""
    meant = nearest(key, options())
    if meant:
        return f"did you mean {meant!r} of the command {options()[meant].commands[0]!r}? {command!r} has no such option"
    return f"`llamafactory-cli {command} --help` lists all"


def _belongs_elsewhere(item: Given, option: Option, command: str) -> str:
    owner = option.commands[0]
    meant = meant_keys().get(item.key)
    hint = f"; did you mean {meant!r}?" if meant and command in options()[meant].commands else ""
    return (
        f"{item.place}: {item.key}: belongs to the command {owner!r}, not to {command!r}"
        f"{hint or '; remove it, or set ALLOW_EXTRA_ARGS=1'}"
    )


def _merge_inner(draft: _Draft, fresh: dict[str, Given], item: Given) -> None:
    """Put the value of a dotted key into the mapping given so far under its first part."""
    if "dict" not in options()[item.key].types:
        draft.problems.append(f"{item.place}: {item.key}.{'.'.join(item.path)}: {item.key} has no inner keys")
        return
    base = fresh.get(item.key) or draft.given.get(item.key)
    mapping = dict(base.value) if base is not None and isinstance(base.value, Mapping) else {}
    inner = mapping
    for part in item.path[:-1]:
        child = inner.get(part)
        inner[part] = child = dict(child) if isinstance(child, Mapping) else {}
        inner = child
    inner[item.path[-1]] = _plain_value(item)
    fresh[item.key] = Given(item.key, mapping, None, item.place)


def _plain_value(item: Given) -> object:
    from llamafactory.config.files import parse_flow

    return parse_flow(str(item.value)) if item.from_argument else item.value


def _type_value(draft: _Draft, key: str, given: Given) -> None:
    try:
        draft.values[key] = coerce(given, options()[key])
    except ValueError as error:
        draft.problems.append(f"{given.place}: {key}: {error}")
        draft.doubted.add(key)


def _build(draft: _Draft, file: Path | None) -> RunConfig:
    sections: dict[str, Section] = {}
    for name, model in section_types().items():
        mine = {key: value for key, value in draft.values.items() if options()[key].section == name}
        passed_on = {key: mine.pop(key) for key in list(mine) if options()[key].passed_on}
        if passed_on:
            mine["extra"] = passed_on
        sections[name] = _build_section(draft, model, mine)
    config = RunConfig(
        **sections,  # type: ignore[arg-type]
        command=draft.command,
        source_file=file,
        origins={key: given.place for key, given in draft.given.items()},
    )
    return find_folders(config)


def _build_section(draft: _Draft, model: type[Section], values: dict[str, object]) -> Section:
    """Build one section; values that its limits refuse are reported and left out."""
    if not values:
        return model.model_construct()  # nothing to check: saves building the validator
    try:
        return model(**values)
    except ValidationError as error:
        for key, details in {str(item["loc"][0]): item for item in reversed(error.errors())}.items():
            draft.problems.append(_refusal(draft.given[key], options()[key], details, values[key]))
            draft.doubted.add(key)
            del values[key]
        return model(**values)


def _refusal(given: Given, option: Option, details: Mapping[str, object], value: object) -> str:
    kind, context = str(details["type"]), details.get("ctx", {})
    where = f"{given.place}: {option.key}: "
    if kind == "value_error" and not option.secret:
        return f"{where}{context['error']}"  # type: ignore[index]
    return where + mismatch(value, option)


def _notices(draft: _Draft, config: RunConfig, file: Path | None) -> tuple[str, ...]:
    name = file or "the options"
    lines = []
    if draft.notes:
        lines.append(f"{name}: old names were translated: {'; '.join(draft.notes)}")
    if draft.ignored:
        lines.append(f"{name}: ignored because ALLOW_EXTRA_ARGS is set: {', '.join(draft.ignored)}")
    return (*lines, *ineffective(config))


def _line(problem: str) -> int:
    """Line number a fault begins with; faults of arguments and of the whole come after those of the file."""
    found = re.match(r"\S+:(\d+): ", problem)
    return int(found[1]) if found else 10**9


def _summary(problems: list[str], file: Path | None) -> str:
    if len(problems) == 1:
        return problems[0]
    lines = "\n".join(f"  {problem}" for problem in problems)
    return f"{file or 'the options'}: {len(problems)} faults\n{lines}"
