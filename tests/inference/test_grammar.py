"""Constrained answers: what a schema allows, and schemas nobody can follow."""

from __future__ import annotations

import json

import pytest
import torch
from tests.conftest import make_tokenizer

from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference.grammar import GrammarCompiler

pytest.importorskip("llguidance")
TOKENIZER = make_tokenizer()
STOP = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
COMPILER = GrammarCompiler(TOKENIZER, (STOP,))
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}


def test_only_tokens_of_the_schema_are_left_and_then_the_stop_token() -> None:
    """Take a random allowed token each time: the text follows the schema whatever the model prefers."""
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        grammar = COMPILER.compile(json.dumps(SCHEMA))
        made: list[int] = []
        while not made or made[-1] != STOP:
            scores = torch.rand(len(TOKENIZER) + 3, generator=random)
            grammar.mask(scores)
            made.append(int(scores.argmax()))
            grammar.accept(made[-1])
            assert len(made) < 40
        assert json.loads(TOKENIZER.decode(made[:-1])) in ({"a": "x"}, {"a": "y"})


def test_an_empty_schema_stands_for_any_object() -> None:
    grammar = COMPILER.compile("{}")
    scores = torch.zeros(len(TOKENIZER))
    grammar.mask(scores)
    allowed = [TOKENIZER.decode([token]) for token in scores.isfinite().nonzero()[:, 0].tolist()]
    assert allowed
    assert all(text.startswith("{") for text in allowed)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "json_schema: got text that is no JSON .*; give a JSON Schema"),
        ("[1]", r"json_schema: got '\[1\]'; give a JSON Schema, which is an object in braces"),
        ('{"type": "objct"}', r"json_schema: the schema cannot be followed \(.*objct\); give a JSON Schema of"),
        ('{"$ref": "http://127.0.0.1/x"}', "does not fetch resources"),
    ],
)
def test_a_bad_schema_is_one_sentence(schema: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        COMPILER.compile(schema)
    assert "\n" not in str(caught.value)


def test_a_token_outside_the_grammar_is_an_error_at_the_next_step() -> None:
    grammar = COMPILER.compile("{}")
    grammar.accept(TOKENIZER.encode("a", add_special_tokens=False)[0])
    with pytest.raises(ModelError, match="cannot go on within the schema"):
        grammar.mask(torch.zeros(len(TOKENIZER)))
