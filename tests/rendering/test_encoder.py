"""Segments become the ids the whole string would have."""

from __future__ import annotations

import pickle

import pytest
from tokenizers import AddedToken
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from llamafactory.errors import ConfigError, ModelError
from llamafactory.rendering.encoder import TextEncoder


def pieces(encoder: TextEncoder, text: str) -> list[int]:
    """Encode `text` segment by segment, control tokens looked up."""
    ids: list[int] = []
    place = "start"
    for part in encoder.split(text):
        if isinstance(part, int):
            ids.append(part)
            place = "control"
        else:
            ids += encoder.encode([part], [place])[0]  # type: ignore[list-item]
            place = "text"
    return ids


@pytest.mark.parametrize(
    "text",
    [
        "hello you",
        " hello",
        "<s>hello",
        "<s> hello</s>you are",
        "<s>[INST] hi [/INST] hello</s><s>[INST] and[/INST]",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
        "▁marked<s>▁marked",
    ],
)
def test_segments_have_the_ids_of_the_whole_string(blank_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    whole = blank_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert pieces(TextEncoder(blank_tokenizer), text) == whole


def test_a_byte_level_tokenizer_with_a_prefix_space_is_matched_too(tokenizer: PreTrainedTokenizerFast) -> None:
    state = tokenizer.backend_tokenizer.to_str().replace('"add_prefix_space":false', '"add_prefix_space":true')
    spaced = PreTrainedTokenizerFast(
        tokenizer_object=type(tokenizer.backend_tokenizer).from_str(state), eos_token="</s>"
    )
    text = "hello<|im_start|>user\nhi<|im_end|> there"
    assert pieces(TextEncoder(spaced), text) == spaced(text, add_special_tokens=False)["input_ids"]


def test_text_after_text_gets_no_blank_of_its_own(blank_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(blank_tokenizer)
    joined = encoder.encode(["hello"], ["text"])[0]
    alone = encoder.encode(["hello"], ["start"])[0]
    assert blank_tokenizer.convert_ids_to_tokens(alone)[0].startswith("▁")
    assert not blank_tokenizer.convert_ids_to_tokens(joined)[0].startswith("▁")


def test_ordinary_added_tokens_in_message_text_stay_tokens(blank_tokenizer: PreTrainedTokenizerFast) -> None:
    blank_tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    encoder = TextEncoder(blank_tokenizer)
    whole = blank_tokenizer("hi<think>you", add_special_tokens=False)["input_ids"]
    parts = encoder.split_data("hi<think>you")
    ids: list[int] = []
    for index, part in enumerate(parts):
        ids += [part] if isinstance(part, int) else encoder.encode([part], ["control" if index else "start"])[0]
    assert ids == whole


def test_control_tokens_in_message_text_are_text(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(tokenizer)
    ids = encoder.encode(["<|eot_id|>"], ["start"])[0]
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") not in ids
    assert tokenizer.decode(ids) == "<|eot_id|>"


def test_the_callers_tokenizer_is_left_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    TextEncoder(tokenizer).encode(["<s> hi"], ["start"])
    assert tokenizer.backend_tokenizer.to_str() == before
    assert tokenizer.backend_tokenizer.encode_special_tokens is False
    assert tokenizer("<|eot_id|>", add_special_tokens=False)["input_ids"] == [
        tokenizer.convert_tokens_to_ids("<|eot_id|>")
    ]


def test_an_encoder_survives_pickling(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(tokenizer)
    again = pickle.loads(pickle.dumps(encoder))
    text = ["hi <|eot_id|> you"]
    assert again.encode(text, ["start"]) == encoder.encode(text, ["start"])


def test_positions_tell_where_each_token_lies(blank_tokenizer: PreTrainedTokenizerFast) -> None:
    text = "hello you are"
    tokens = TextEncoder(blank_tokenizer).encode_with_ends([text], ["start"])[0]
    assert [token for token, _, _ in tokens] == blank_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens[-1][2] == len(text)
    assert all(0 <= start <= end <= len(text) for _, start, end in tokens)


def test_a_token_the_vocabulary_lacks_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"the template glm needs the token '\[nope\]'.*add_special_tokens"):
        TextEncoder(tokenizer).token_id("[nope]", "the template glm")


def test_a_tokenizer_without_a_rust_side_is_refused() -> None:
    with pytest.raises(ModelError, match="ByT5Tokenizer has no Rust tokenizer behind it"):
        TextEncoder(ByT5Tokenizer())


def test_the_fingerprint_tells_tokenizers_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    before = TextEncoder(tokenizer).fingerprint
    assert TextEncoder(tokenizer).fingerprint == before
    tokenizer.add_tokens(["new"])
    assert TextEncoder(tokenizer).fingerprint != before
