"""Streaming text: whole characters only, nothing lost, stop texts never shown."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conftest import make_tokenizer
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from llamafactory.inference.streaming import REPLACEMENT, AnswerStream, Detokenizer, StopFilter

TOKENIZER = make_tokenizer()


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """SentencePiece style: `▁` for spaces, the first one dropped, unknown characters as byte tokens."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for piece in ("▁hello", "▁world", "▁", "wor", "ld", "!", "▁a", "b"):
        vocab[piece] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend)


FALLBACK = byte_fallback_tokenizer()


def pieces(ids: list[int], tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> list[str]:
    stream = Detokenizer(lambda some: tokenizer.decode(list(some), clean_up_tokenization_spaces=False))
    return [*(stream.push(token) for token in ids), stream.finish()]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_pieces_join_to_the_whole_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    whole = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    found = pieces(ids)
    assert "".join(found) == whole
    if REPLACEMENT not in whole:
        assert not any(REPLACEMENT in piece for piece in found)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_any_tokens_give_text_at_once_and_no_error(ids: list[int]) -> None:
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", ["👋🏽 你好 — naïve", "a👩‍👩‍👧‍👦b", "é" * 50, "𠜎𠜱" * 40])
def test_a_character_of_many_tokens_appears_once_whole(text: str) -> None:
    data = text.encode()
    by_byte = [FALLBACK.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
    found = pieces(by_byte, FALLBACK)
    assert "".join(found) == text.lstrip(" ")
    assert not any(REPLACEMENT in piece for piece in found)
    assert all(len(piece) <= 1 for piece in found)


def test_spaces_between_words_survive_a_tokenizer_that_strips_the_first() -> None:
    ids = [FALLBACK.convert_tokens_to_ids(piece) for piece in ("▁hello", "▁world", "!", "▁a", "b", "▁hello") * 20]
    assert "".join(pieces(ids, FALLBACK)) == FALLBACK.decode(ids, clean_up_tokenization_spaces=False)


def test_broken_bytes_do_not_hold_the_stream_back() -> None:
    lone = TOKENIZER.encode("é", add_special_tokens=False)
    broken = [token for token in lone if REPLACEMENT in TOKENIZER.decode([token])][:1] or lone[:1]
    found = pieces(broken * 300 + TOKENIZER.encode(" fine", add_special_tokens=False))
    assert "".join(found).endswith("fine")
    assert sum(map(bool, found)) > 100


def test_the_work_per_token_does_not_grow() -> None:
    lengths: list[int] = []

    def decode(ids: object) -> str:
        lengths.append(len(list(ids)))  # type: ignore[call-overload]
        return REPLACEMENT * lengths[-1]

    stream = Detokenizer(decode)
    for token in range(2000):
        stream.push(token)
    assert max(lengths) <= 130


@pytest.mark.parametrize(
    ("stops", "given_text", "shown"),
    [
        (["END"], "abc END def", "abc "),
        (["END"], "abc EN", "abc EN"),
        (["aab"], "aaab!", "a"),
        (["x\n\n", "\n\ny"], "1x\n\ny", "1"),
        ([], "all of it", "all of it"),
        ([""], "all of it", "all of it"),
        (["。"], "你好。再见", "你好"),
    ],
)
def test_stop_texts_are_never_shown_however_the_text_is_cut(stops: list[str], given_text: str, shown: str) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        filter_, out, rest = StopFilter(stops), "", given_text
        while rest:
            cut = rng.randint(1, 3)
            out += filter_.push(rest[:cut])
            assert shown.startswith(out)
            rest = rest[cut:]
        stopped = filter_.stopped
        assert out + filter_.finish() == shown
        assert stopped == (shown != given_text)
        assert filter_.push("more") == "" or not stopped


def test_a_stop_token_ends_the_answer_and_counts_but_is_not_shown() -> None:
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    stream = AnswerStream(lambda ids: TOKENIZER.decode(list(ids)), stop_ids=[end])
    ids = TOKENIZER.encode("I am here", add_special_tokens=False)
    text = "".join(stream.push(token) for token in [*ids, end, *ids])
    assert (text, stream.stopped, stream.num_tokens) == ("I am here", True, len(ids) + 1)
    assert stream.finish() == ""


def test_without_a_stop_the_held_text_comes_out_at_the_end() -> None:
    stream = AnswerStream(lambda ids: TOKENIZER.decode(list(ids)), stop_ids=[], stops=["here!"])
    ids = TOKENIZER.encode("I am here", add_special_tokens=False)
    text = "".join(stream.push(token) for token in ids)
    assert text == "I am "
    assert stream.finish() == "here"
    assert not stream.stopped
