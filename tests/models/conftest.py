"""Fixtures of the models room: configurations from flat keys, tiny models with tied and untied embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

from llamafactory.config.run import RunConfig, section_types
from llamafactory.models.load import LoadedModel, load_model
from llamafactory.models.starter import build_model
from llamafactory.models.tokenizer import TokenizerBundle, load_tokenizer

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config() -> MakeConfig:
    """Build a RunConfig from flat keys, each put into the section it belongs to."""

    def build(command: str = "train", **options: object) -> RunConfig:
        sections = {}
        for name, section in section_types().items():
            own = {key: options.pop(key) for key in list(options) if key in section.model_fields}
            sections[name] = section(**own)
        assert not options, f"unknown keys {options}"
        return RunConfig(**sections, command=command)

    return build


@pytest.fixture
def untied_dir(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Folder with a 2-layer Llama whose input and output embeddings are apart."""
    folder = tmp_path / "untied"
    tokenizer.save_pretrained(folder)
    build_model(tokenizer, hidden_size=32, num_layers=2, max_length=512, tie_word_embeddings=False).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def load(make_config: MakeConfig) -> Callable[..., tuple[LoadedModel, TokenizerBundle, RunConfig]]:
    """Load tokenizer and model for flat keys."""

    def run(
        trainable: bool = True, merge: bool = True, **options: object
    ) -> tuple[LoadedModel, TokenizerBundle, RunConfig]:
        config = make_config(**options)
        bundle = load_tokenizer(config)
        return load_model(config, bundle, trainable=trainable, merge=merge), bundle, config

    return run


def step(model: torch.nn.Module, learning_rate: float = 0.5) -> dict[str, torch.Tensor]:
    """One manual SGD step on a fixed batch; returns the parameters as they were before."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    ids = torch.arange(40, 72).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= learning_rate * parameter.grad.to(parameter.dtype)
                parameter.grad = None
    return before


@pytest.fixture
def sgd_step() -> Callable[..., dict[str, torch.Tensor]]:
    return step


def write_gemma3(folder: Path, model_dir: Path) -> Path:
    """Write a tiny Gemma 3 with a vision tower, and the tokenizer of `model_dir`; returns the folder."""
    text = {"vocab_size": 512, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_dir).save_pretrained(folder)
    return folder
