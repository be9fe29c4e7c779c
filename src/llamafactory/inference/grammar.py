"""Answers that follow a JSON schema: which tokens may come next, by llguidance.

Knows a tokenizer and schemas; no model.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llamafactory.errors import ConfigError, ModelError, first_line
from llamafactory.parts import require

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer


class GrammarCompiler:
    """Grammars for one tokenizer. stop_ids: the tokens that may end a complete answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._vocabulary: LLTokenizer | None = None

    def compile(self, schema: str) -> Grammar:
        """A fresh grammar for an answer. Raises ConfigError for what is no usable schema."""
        require("llguidance", "json_schema", extra="serve")
        from llguidance import LLMatcher

        text = LLMatcher.grammar_from_json_schema(parse_schema(schema), defaults={"whitespace_flexible": False})
        matcher = LLMatcher(self._load(), text, log_level=0)
        if matcher.is_error():
            raise ConfigError(
                f"json_schema: the schema cannot be followed ({_short(matcher.get_error())}); give a JSON Schema of "
                "the usual keywords (type, properties, required, items, enum, anyOf ...)"
            )
        return Grammar(matcher)

    def _load(self) -> LLTokenizer:
        if self._vocabulary is None:
            from llguidance.hf import from_tokenizer

            try:
                self._vocabulary = from_tokenizer(self._tokenizer, eos_token=list(self._stop_ids))
            except ValueError as error:
                raise ConfigError(
                    f"json_schema: the tokenizer of this model cannot be constrained ({first_line(error)}); leave "
                    "json_schema out"
                ) from error
        return self._vocabulary


class Grammar:
    """Where one answer stands in its grammar."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def mask(self, scores: Tensor) -> None:
        """Set the scores [V] of tokens that may not come next to minus infinity, in place."""
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._raise_error()
        known = min(len(allowed), len(scores))
        scores[known:] = float("-inf")
        scores[:known].masked_fill_(~allowed[:known].to(scores.device), float("-inf"))

    def accept(self, token: int) -> None:
        """Go on past a token; one the grammar forbids shows as an error at the next `mask`."""
        self._matcher.consume_token(token)

    def _raise_error(self) -> None:
        if self._matcher.is_error():
            raise ModelError(
                f"json_schema: the answer cannot go on within the schema ({_short(self._matcher.get_error())}); "
                "simplify the schema"
            )


def parse_schema(schema: str) -> dict[str, object]:
    """The schema as a mapping; an empty one stands for any object. Raises ConfigError for what is no mapping."""
    try:
        found = json.loads(schema)
    except ValueError as error:
        raise ConfigError(f"json_schema: got text that is no JSON ({first_line(error)}); give a JSON Schema") from error
    if not isinstance(found, dict):
        raise ConfigError(f"json_schema: got {schema[:60]!r}; give a JSON Schema, which is an object in braces")
    return found or {"type": "object"}


def _short(message: str) -> str:
    return message.strip().splitlines()[0][:200] if message.strip() else "no reason given"
