"""Loading the tokenizer of a run and adding the tokens it asks for. Knows no template and no model class.

An adapter folder that carries a tokenizer wins over the base: it holds the tokens the adapter was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from transformers import AutoTokenizer

from llamafactory.errors import ConfigError, ModelError
from llamafactory.logs import get_logger
from llamafactory.models.hub import fetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llamafactory.config.run import RunConfig
    from llamafactory.config.sections.vocab import VocabConfig

logger = get_logger(__name__)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True, slots=True)
class TokenizerBundle:
    """A tokenizer and what was done to it.

    folder: where it was read from. added_tokens: tokens this run added, in order. special_tokens: those of them that
    are control tokens. descriptions: token -> description, for its first embedding. must_resize: the embeddings must
    cover the tokenizer. notes: sentences for the log.
    """

    tokenizer: PreTrainedTokenizerBase
    folder: Path
    added_tokens: tuple[str, ...] = ()
    special_tokens: tuple[str, ...] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)
    must_resize: bool = False
    notes: tuple[str, ...] = ()


def load_tokenizer(config: RunConfig) -> TokenizerBundle:
    """Load the tokenizer, right padding, with the tokens of add_tokens and add_special_tokens added.

    Raises ConfigError for a bad new_special_tokens_config, ModelError when there is no usable tokenizer.
    """
    folder = tokenizer_folder(config)
    tokenizer = _read(folder, trusted=config.hub.trust_remote_code)
    tokenizer.padding_side = "right"
    notes = []
    if not config.vocab.use_fast_tokenizer:
        notes.append("use_fast_tokenizer: false has no effect, transformers 5 has one tokenizer per model")
    special, descriptions = _special_tokens(config.vocab)
    added = [*_add(tokenizer, config.vocab.add_tokens, special=False), *_add(tokenizer, special, special=True)]
    if added:
        notes.append(f"added {len(added)} tokens to the tokenizer: {', '.join(added[:8])}{' ...' * (len(added) > 8)}")
    for note in notes:
        logger.info(note)
    return TokenizerBundle(
        tokenizer=tokenizer,
        folder=folder,
        added_tokens=tuple(added),
        special_tokens=tuple(token for token in added if token in special),
        descriptions=descriptions,
        must_resize=config.vocab.resize_vocab or bool(added),
        notes=tuple(notes),
    )


def tokenizer_folder(config: RunConfig) -> Path:
    """The folder the tokenizer is read from: the last adapter that carries one, else the base model."""
    for name in reversed(config.model.adapter_name_or_path):
        folder = fetch(name, config.hub, key="adapter_name_or_path", folder=config.model.adapter_folder)
        if any((folder / file).is_file() for file in _TOKENIZER_FILES):
            return folder
    if not config.model.model_name_or_path:
        raise ConfigError("model_name_or_path: a model is needed, but none was given; name a folder or a hub id")
    return fetch(config.model.model_name_or_path, config.hub, key="model_name_or_path", weights=False)


def _read(folder: Path, *, trusted: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model_name_or_path: no tokenizer could be read from {folder} (expected tokenizer.json or "
            f"tokenizer.model): {reason}; check that the tokenizer files are complete"
        ) from error


def _special_tokens(vocab: VocabConfig) -> tuple[tuple[str, ...], dict[str, str]]:
    if not vocab.new_special_tokens_config:
        if vocab.init_special_tokens != "noise_init":
            logger.warning(
                "init_special_tokens: %s needs new_special_tokens_config; noise_init is used", vocab.init_special_tokens
            )
        return vocab.add_special_tokens, {}
    if vocab.add_special_tokens:
        logger.warning("add_special_tokens has no effect because new_special_tokens_config is set")
    descriptions = _read_descriptions(Path(vocab.new_special_tokens_config).expanduser())
    return tuple(descriptions), descriptions


def _read_descriptions(file: Path) -> dict[str, str]:
    key = "new_special_tokens_config"
    if not file.is_file():
        raise ConfigError(f"{key}: the file {str(file)!r} does not exist (seen from {Path.cwd()}); correct the path")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{key}: {file} is not valid YAML ({error}); write one `token: description` a line"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise ConfigError(
            f"{key}: {file} must map tokens to descriptions, got {type(content).__name__}; "
            "write one `token: description` a line"
        )
    return {str(token): description for token, description in content.items()}


def _add(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...], *, special: bool) -> list[str]:
    """Add those of `tokens` that the tokenizer does not hold yet; returns them in order."""
    known = tokenizer.get_vocab()
    fresh = [token for token in dict.fromkeys(tokens) if token not in known]
    if fresh:
        tokenizer.add_tokens(fresh, special_tokens=special)
    return fresh
