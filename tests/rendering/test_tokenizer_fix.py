"""Tokenizers are made to fit a template, in place, and say what was changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerFast

from llamafactory.models.starter import build_tokenizer
from llamafactory.rendering.template import get_template, templates
from llamafactory.rendering.tokenizer_fix import FALLBACK_EOS, TokenizerChanges, fix_tokenizer


def bare(**options: str) -> PreTrainedTokenizerFast:
    return build_tokenizer(
        ["hello"], vocab_size=300, special_tokens=["</s>", "<pad>"], eos_token="</s>", pad_token="<pad>"
    )


def test_the_first_stop_word_becomes_the_end_token_and_the_others_control_tokens() -> None:
    tokenizer = bare()
    changes = fix_tokenizer(tokenizer, get_template("llama3"))
    assert tokenizer.eos_token == "<|eot_id|>"
    new = ("<|eot_id|>", "<|eom_id|>")
    missing = ("<|start_header_id|>", "<|end_header_id|>")
    assert changes == TokenizerChanges(eos="<|eot_id|>", control=("<|eom_id|>",), added=new, spelled=missing)
    assert len(tokenizer("a<|eom_id|>", add_special_tokens=False)["input_ids"]) == 2


def test_doing_it_twice_changes_nothing_more() -> None:
    for template in templates().values():
        tokenizer = bare()
        fix_tokenizer(tokenizer, template)
        size = len(tokenizer)
        assert not fix_tokenizer(tokenizer, template)
        assert len(tokenizer) == size


def test_a_tokenizer_that_fits_is_left_alone(fresh: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = fresh()
    before = tokenizer.backend_tokenizer.to_str()
    assert not fix_tokenizer(tokenizer, get_template("default"))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_missing_end_and_padding_tokens_get_a_fallback() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare().backend_tokenizer)
    assert tokenizer.eos_token is None
    changes = fix_tokenizer(tokenizer, get_template("default"))
    assert (changes.eos, changes.pad) == (FALLBACK_EOS, FALLBACK_EOS)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_new_tokens_are_reported_and_known_ones_are_not() -> None:
    tokenizer = bare()
    tokenizer.add_tokens(["<|im_end|>"])
    assert fix_tokenizer(tokenizer, get_template("qwen")).added == ()
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("name", list(templates()))
def test_every_template_leaves_a_tokenizer_with_end_and_padding(name: str) -> None:
    tokenizer = bare()
    fix_tokenizer(tokenizer, get_template(name))
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id is not None
    assert set(get_template(name).stop_words) <= {token.content for token in tokenizer.added_tokens_decoder.values()}
