"""Tokenizers and renderers of the rendering tests, all built here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llamafactory.models.starter import build_tokenizer
from llamafactory.rendering.control_tokens import control_tokens
from llamafactory.rendering.renderer import Renderer, build_renderer
from llamafactory.rendering.template import templates

TEXTS = [
    "Who are you? I am a small assistant. USER: hi ASSISTANT: hello Human: Assistant: answer Response:",
    "### Instruction:\nName three colours.\n\n### Response:\nRed, green and blue.\n\n- one\n- two\n",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}} {{content}} {{idx}}',
    "你好，世界。再见 👋 — café naïve user\n assistant\n system\n model\n <think> </think>",
] * 10
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True)
class Options:
    """The section `template` of a run, as rendering sees it."""

    template: str | None = None
    tool_format: str | None = None
    default_system: str | None = None
    enable_thinking: bool | None = True
    preserve_thinking: bool = False
    template_date: str | None = None


def byte_level(**options: object) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that holds the control tokens of every template."""
    special = dict.fromkeys(
        ("<s>", "</s>", "<pad>", *(name for item in templates().values() for name in control_tokens(item)))
    )
    tokenizer = build_tokenizer(
        TEXTS, vocab_size=900, special_tokens=list(special), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tokenizer


def sentencepiece_like(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts blanks in front of text, by `first` or `always` (Metaspace), `prepend` or `unigram`."""
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "[INST]", "[/INST]"]
    backend = Tokenizer(models.Unigram() if kind == "unigram" else models.BPE(unk_token="<unk>"))
    if kind == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        scheme = "always" if kind == "unigram" else kind
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    alphabet = sorted({character for text in TEXTS for character in text if character != " "})
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=special, unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def saved_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("byte_level")
    byte_level().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def fresh(saved_tokenizer: str) -> Callable[[], PreTrainedTokenizerFast]:
    """Makes a fresh byte-level tokenizer; a template may change the one it is given."""
    return lambda: PreTrainedTokenizerFast.from_pretrained(saved_tokenizer)


@pytest.fixture
def render_with(fresh: Callable[[], PreTrainedTokenizerFast]) -> Callable[..., Renderer]:
    """Builds a renderer from option values, on a fresh tokenizer unless one is given."""

    def build(
        template: str | None = None,
        *,
        tokenizer: object = None,
        split_special_tokens: bool | None = None,
        **options: object,
    ) -> Renderer:
        chosen = fresh() if tokenizer is None else tokenizer
        return build_renderer(chosen, Options(template, **options), split_special_tokens=split_special_tokens)

    return build


@pytest.fixture(params=["first", "always", "prepend", "unigram"])
def blank_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return sentencepiece_like(request.param)
