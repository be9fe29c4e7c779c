"""Reading a YAML or JSON file into `Given` values that know their line.

Safe YAML only: no tags that build objects, no repeated keys, bounded size, depth and aliases. Knows no option.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from llamafactory.config.given import Given
from llamafactory.errors import ConfigError

MAX_FILE_BYTES = 512 * 1024
MAX_NODES = 20_000
MAX_DEPTH = 40

YAML_SUFFIXES = (".yaml", ".yml")
SUFFIXES = (*YAML_SUFFIXES, ".json")


class _Loader(yaml.SafeLoader):
    """Safe loader that reads `1e-4` as a number and a date as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_file(path: Path) -> list[Given]:
    """Read the top-level mapping of a YAML or JSON file. Raises ConfigError with file and line."""
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        return _read_json(path, text)
    return _read_yaml(path, text)


def parse_flow(text: str) -> object:
    """Read one YAML value, such as `3`, `[a, b]` or `{a: 1}`. Raises ValueError when it is not one."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_tree(node)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, _TreeError) as error:
        raise ValueError(f"is not valid YAML: {_problem(error)}") from error


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ConfigError(
                f"{path}: the file has {size} bytes, a configuration may have {MAX_FILE_BYTES}; "
                "give the data itself through dataset_dir"
            )
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the name and the folder") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _read_yaml(path: Path, text: str) -> list[Given]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return []
        _check_tree(node)
        if not isinstance(node, yaml.MappingNode):
            raise _TreeError("the file must hold `key: value` lines", node)
        return list(_given(path, node, loader))
    except (yaml.YAMLError, RecursionError, _TreeError) as error:
        raise ConfigError(f"{path}{_line(error)}: is not valid YAML: {_problem(error)}") from error


def _given(path: Path, node: yaml.MappingNode, loader: _Loader) -> Iterator[Given]:
    loader.flatten_mapping(node)
    seen: dict[str, Given] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        text = value_node.value if isinstance(value_node, yaml.ScalarNode) else None
        place = f"{path}:{key_node.start_mark.line + 1}"
        seen[key] = Given(key, loader.construct_document(value_node), text, place)
    yield from seen.values()


class _TreeError(Exception):
    """The YAML is well formed, but not what a configuration may be."""

    def __init__(self, problem: str, node: yaml.Node) -> None:
        super().__init__(problem)
        self.problem = problem
        self.problem_mark = node.start_mark


def _check_tree(root: yaml.Node) -> None:
    """Refuse repeated keys, cycles, deep nesting, and aliases that would expand to more than MAX_NODES nodes."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise _TreeError("an alias points at a value that contains it", node)
        if id(node) in sizes:
            return sizes[id(node)]
        if depth > MAX_DEPTH:
            raise _TreeError(f"values are nested more than {MAX_DEPTH} deep", node)
        open_nodes.add(id(node))
        total = 1 + sum(size(child, depth + 1) for child in _children(node))
        open_nodes.discard(id(node))
        if total > MAX_NODES:
            raise _TreeError(f"the aliases expand to more than {MAX_NODES} values", node)
        sizes[id(node)] = total
        return total

    size(root, 0)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if not isinstance(node, yaml.MappingNode):
        return []
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _TreeError("a key must be one word", key)
        if key.value in lines and key.value != "<<":
            raise _TreeError(f"the key {key.value!r} was given before, on line {lines[key.value]}; keep one", key)
        lines[key.value] = key.start_mark.line + 1
    return [child for pair in node.value for child in pair]


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"values are nested more than {MAX_DEPTH} deep"
    return str(getattr(error, "problem", None) or error).replace("\n", " ")


def _line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f":{mark.line + 1}"


def _read_json(path: Path, text: str) -> list[Given]:
    lines = _json_lines(text)

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{path}:{lines.get(key, 1)}: the key {key!r} is given twice; keep one")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=once) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: is not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is not valid JSON: values are nested too deep") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: the file must hold one JSON object, got {type(value).__name__}")
    return [Given(key, item, None, f"{path}:{lines.get(key, 1)}") for key, item in value.items()]


def _json_lines(text: str) -> dict[str, int]:
    """First line of each quoted key; a key of an inner object may hide the same key further down."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        for key in re.findall(r'"([^"\\]+)"\s*:', line):
            lines.setdefault(key, number)
    return lines
