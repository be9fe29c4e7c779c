"""The registry: dataset_info.json -> frozen entries, with every key checked.

Knows the keys and their defaults, not the files behind them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llamafactory import env
from llamafactory.errors import DataError, did_you_mean

REGISTRY_FILE = "dataset_info.json"
FORMATS = ("alpaca", "sharegpt", "openai")

_COLUMN_DEFAULTS: Mapping[str, str | None] = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "messages": "conversations",
    "history": None,
    "system": None,
    "tools": None,
    "images": None,
    "videos": None,
    "audios": None,
    "chosen": None,
    "rejected": None,
    "kto_tag": None,
}
_COLUMN_ALIASES = {"image": "images", "video": "videos", "audio": "audios"}
_TAG_DEFAULTS: Mapping[str, str] = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_OPENAI_TAGS: Mapping[str, str] = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_LOCATIONS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
_PLAIN_KEYS: Mapping[str, type] = {
    **dict.fromkeys(_LOCATIONS, str),
    "formatting": str,
    "ranking": bool,
    "subset": str,
    "split": str,
    "folder": str,
    "num_samples": int,
    "columns": dict,
    "tags": dict,
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column of a row holds what; None means the data set has no such column.

    given: keys the registry entry names itself. A name not in `given` is a default, used only where the row has it.
    """

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    messages: str | None = "conversations"
    history: str | None = None
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    given: frozenset[str] = frozenset()

    def names(self, *, only_given: bool = False) -> dict[str, str]:
        """Key -> column name for every key that has one."""
        keys = self.given if only_given else _COLUMN_DEFAULTS
        return {key: name for key in sorted(keys) if (name := getattr(self, key)) is not None}


@dataclass(frozen=True, slots=True)
class Tags:
    """The words a message uses: its keys for role and content, and its role names."""

    role_tag: str = "from"
    content_tag: str = "value"
    user_tag: str = "human"
    assistant_tag: str = "gpt"
    observation_tag: str = "observation"
    function_tag: str = "function_call"
    system_tag: str = "system"


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """One data set of the registry. `location` is the URL, id or file name; `source` the part that loads it.

    media_dir: root of relative media paths, or None when paths are used as they are.
    """

    name: str
    source: str
    location: str
    formatting: str = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    columns: Columns = field(default_factory=Columns)
    tags: Tags = field(default_factory=Tags)
    media_dir: Path | None = None


def load_entries(
    names: Sequence[str], registry: Mapping[str, object] | None, *, where: str, media_dir: Path | None = None
) -> list[DatasetEntry]:
    """Look up `names` in a registry object, in order; the same name may appear twice.

    registry: None means that every name is a Hugging Face data set id (`dataset_dir: ONLINE`). where: the registry's
    name in error messages. Raises DataError for an unknown name, key, type or a missing location.
    """
    if registry is None:
        return [DatasetEntry(name=name, source="hf", location=name) for name in names]
    return [_entry(name, registry, where=where, media_dir=media_dir) for name in names]


def read_registry(path: Path) -> Mapping[str, object]:
    """Read a registry file. Raises DataError when it is missing or not a JSON object."""
    if not path.is_file():
        others = (
            sorted(str(other) for other in path.parent.parent.glob(f"*/{REGISTRY_FILE}")) if path.parent.parent else []
        )
        hint = f"; there is one at {others[0]}" if others else ""
        raise DataError(
            f"dataset_dir: {path} does not exist, it must be a JSON object that maps data set names to their files; "
            f"set dataset_dir to the folder that holds {REGISTRY_FILE}{hint}"
        )
    try:
        registry = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: not valid JSON ({error}), so no data set can be looked up; repair the file"
        ) from error
    if not isinstance(registry, dict):
        raise DataError(
            f"{path}: found a JSON {type(registry).__name__}, expected an object that maps data set names to entries; "
            'write {"my_data": {"file_name": "my_data.json"}}'
        )
    return registry


def _entry(name: str, registry: Mapping[str, object], *, where: str, media_dir: Path | None) -> DatasetEntry:
    if name not in registry:
        raise DataError(
            f"{where}: the data set {name!r} is not defined there (known: "
            f"{_some(registry)}), so there is nothing to read; "
            f"add an entry or correct the name{did_you_mean(name, registry)}"
        )
    at = f"{where}: {name}"
    entry = registry[name]
    if not isinstance(entry, Mapping):
        raise DataError(f"{at}: found {_kind(entry)}, expected an object such as " + '{"file_name": "my_data.json"}')
    _check_keys(entry, at)
    source, location = _locate(entry, at)
    formatting = entry.get("formatting") or "alpaca"
    if formatting not in FORMATS:
        raise DataError(
            f"{at}.formatting: {formatting!r} is not a format, which names the shape of one row; choose from "
            f"{', '.join(FORMATS)}{did_you_mean(str(formatting), FORMATS)}"
        )
    given = {
        key: entry[key] for key in ("ranking", "subset", "split", "folder", "num_samples") if entry.get(key) is not None
    }
    if given.get("num_samples", 1) < 1:
        raise DataError(
            f"{at}.num_samples: {given['num_samples']} is not a count of rows; give 1 or more, or leave it out"
        )
    return DatasetEntry(
        name=name,
        source=source,
        location=location,
        formatting=formatting,
        columns=_columns(entry.get("columns"), formatting=formatting, at=at),
        tags=_tags(entry.get("tags"), formatting=formatting, at=at),
        media_dir=media_dir if source in {"file", "cloud"} else None,
        **given,
    )


def _check_keys(entry: Mapping[str, object], at: str) -> None:
    for key, value in entry.items():
        if key not in _PLAIN_KEYS:
            raise DataError(
                f"{at}.{key}: unknown key (known: {', '.join(_PLAIN_KEYS)}), which would have no effect; "
                f"remove or correct it{did_you_mean(key, _PLAIN_KEYS)}"
            )
        wanted = _PLAIN_KEYS[key]
        if value is not None and (not isinstance(value, wanted) or (wanted is int and isinstance(value, bool))):
            raise DataError(f"{at}.{key}: found {_kind(value)}, expected {_WORDS[wanted]}; correct the entry")


def _locate(entry: Mapping[str, object], at: str) -> tuple[str, str]:
    """Apply the documented precedence of the location keys."""
    where = {key: str(entry[key]) for key in _LOCATIONS if entry.get(key)}
    hubs = [key for key in ("hf_hub_url", "ms_hub_url", "om_hub_url") if key in where]
    if hubs:
        if "ms_hub_url" in where and (env.is_enabled("USE_MODELSCOPE_HUB") or "hf_hub_url" not in where):
            return "modelscope", where["ms_hub_url"]
        if "om_hub_url" in where and (env.is_enabled("USE_OPENMIND_HUB") or "hf_hub_url" not in where):
            return "openmind", where["om_hub_url"]
        return "hf", where["hf_hub_url"]
    if "script_url" in where:
        raise DataError(
            f"{at}.script_url: {where['script_url']!r} names a loading script, and scripts are code that the datasets "
            "library no longer runs; convert the data to JSON or Parquet and give file_name instead"
        )
    if "cloud_file_name" in where:
        return "cloud", where["cloud_file_name"]
    if "file_name" in where:
        return "file", where["file_name"]
    raise DataError(
        f"{at}: the entry says nothing about where the data is; give one of "
        f"{', '.join(k for k in _LOCATIONS if k != 'script_url')}"
    )


def _columns(given: object, *, formatting: str, at: str) -> Columns:
    defaults = dict(_COLUMN_DEFAULTS)
    if formatting == "openai":
        defaults["messages"] = "messages"
    names = _named(given, aliases=_COLUMN_ALIASES, known=defaults, at=f"{at}.columns")
    return Columns(**{**defaults, **names}, given=frozenset(names))


def _tags(given: object, *, formatting: str, at: str) -> Tags:
    defaults = _OPENAI_TAGS if formatting == "openai" else _TAG_DEFAULTS
    names = _named(given, aliases={}, known=defaults, at=f"{at}.tags")
    return Tags(**{**defaults, **{key: value for key, value in names.items() if value is not None}})


def _named(given: object, *, aliases: Mapping[str, str], known: Mapping[str, object], at: str) -> dict[str, str | None]:
    """Check a columns or tags map; an empty string means none."""
    if given is None:
        return {}
    assert isinstance(given, Mapping)
    names: dict[str, str | None] = {}
    for key, value in given.items():
        plain = aliases.get(key, key)
        if plain not in known:
            raise DataError(
                f"{at}.{key}: unknown key (known: {', '.join(known)}), which would have no effect; "
                f"remove or correct it{did_you_mean(key, known)}"
            )
        if value is not None and not isinstance(value, str):
            raise DataError(f"{at}.{key}: found {_kind(value)}, expected a string; correct the entry")
        if plain in names:
            raise DataError(f"{at}.{key}: {plain} is named twice in different spellings; keep one of them")
        names[plain] = value or None
    return names


_WORDS: Mapping[type, str] = {str: "a string", bool: "true or false", int: "a whole number", dict: "an object"}


def _kind(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:80]


def _some(registry: Mapping[str, object], limit: int = 8) -> str:
    names = sorted(registry)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"
