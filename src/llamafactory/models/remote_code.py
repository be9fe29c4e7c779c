"""The gate between a model folder and the libraries that read it: nothing in the folder may start code unasked.

Model configurations have several doors to code besides `auto_map`: nested sub-configurations, `model_file`, attention
or expert kernels named by a hub repository, Megatron modules in adapter configurations. All are looked for here, before
any library reads the folder. Knows JSON files; loads no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llamafactory.errors import ModelError
from llamafactory.logs import get_logger

logger = get_logger(__name__)

# Large data files that no library reads for class names.
_DATA_FILES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "trainer_state.json", "tekken.json"})
_CODE_KEYS = frozenset({"auto_map", "model_file"})
_KERNEL_WORDS = ("attn_implementation", "experts_implementation", "kernel")


@dataclass(frozen=True, slots=True)
class CodeReference:
    """A place in a JSON file that names code.

    key: dotted path inside the file. foreign: the code lives outside the folder, so no flag can vouch for it.
    """

    file: str
    key: str
    value: str
    foreign: bool


def refuse_code(folder: Path, source: str, *, trusted: bool) -> None:
    """Check every JSON file of a model, tokenizer or adapter folder.

    source: the name the user gave, for messages. trusted: the run says `trust_remote_code: true`. Code from another
    repository than `source` is refused even then. A model family that transformers knows itself needs none of the
    repository's code: without the flag its `auto_map` is passed over. Raises ModelError.
    """
    references = [found for file in _json_files(folder) for found in _references(file)]
    if not trusted and _is_native(folder):
        unused = [found for found in references if _is_passed_over(found)]
        references = [found for found in references if found not in unused]
        if unused:
            logger.info("%s: %s is not run, transformers' own class is used", source, _where(unused[0]))
    foreign = [found for found in references if found.foreign]
    if foreign:
        raise ModelError(
            f"{source}: {_where(foreign[0])} names code outside this folder, which is never fetched or run; "
            "use a copy of the model without that entry"
        )
    if references and not trusted:
        raise ModelError(
            f"{source}: {_where(references[0])} names Python code of this repository, and such code is not run unless "
            "trust_remote_code: true is set; read the code first, or use a copy of the model without that entry"
        )
    if references:
        logger.warning("trust_remote_code: running Python code of %s (%s)", source, _where(references[0]))


def _is_native(folder: Path) -> bool:
    """True when transformers has its own class for the model type of the folder."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    content = json.loads(file.read_text(encoding="utf-8"))
    return isinstance(content, dict) and content.get("model_type") in CONFIG_MAPPING_NAMES


def _is_passed_over(found: CodeReference) -> bool:
    """Entries that the library's loaders only follow when they are allowed to: the top-level `auto_map`."""
    listed = found.file in {"config.json", "tokenizer_config.json"} and found.key.startswith("auto_map.")
    return listed and not found.foreign


def _where(found: CodeReference) -> str:
    return f"{found.file}: {found.key} = {found.value!r}"


def _json_files(folder: Path) -> list[Path]:
    return [
        file
        for file in sorted(folder.glob("*.json"))
        if file.name not in _DATA_FILES and not file.name.endswith(".index.json")
    ]


def _references(file: Path) -> Iterator[CodeReference]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: expected a JSON file, found something else ({error}); restore the file") from error
    for path, value in _walk(content):
        found = _judge(file.name, path, value)
        if found is not None:
            yield found


def _walk(content: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every (path, value) of nested mappings and lists, without recursion: a hostile file may be deep."""
    stack: list[tuple[tuple[str, ...], object]] = [((), content)]
    while stack:
        path, value = stack.pop()
        if path:
            yield path, value
        if isinstance(value, dict):
            stack.extend(((*path, str(key)), inner) for key, inner in value.items())
        elif isinstance(value, list):
            stack.extend(((*path, str(index)), inner) for index, inner in enumerate(value))


def _judge(file: str, path: tuple[str, ...], value: object) -> CodeReference | None:
    key = ".".join(path)
    if path[-1] == "megatron_config" and value:
        return CodeReference(file, key, str(value), foreign=True)
    if not isinstance(value, str) or not value:
        return None
    if any(part in _CODE_KEYS for part in path):
        return CodeReference(file, key, value, foreign="--" in value)
    if "/" in value and any(word in part for part in path for word in _KERNEL_WORDS):
        return CodeReference(file, key, value, foreign=True)
    return None
