"""Tiny models whose greedy answers depend on every token before, and ways to ask an engine over them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import torch
from tests.conftest import make_tokenizer
from transformers import PreTrainedModel

from llamafactory.config.sections.template import TemplateConfig
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.inference.engines.huggingface import HuggingFaceEngine
from llamafactory.models.starter import build_model
from llamafactory.rendering.renderer import build_renderer

GREEDY = GenerationOptions(do_sample=False, max_new_tokens=12, skip_special_tokens=False)
TOKENIZER = make_tokenizer()
RENDERER = build_renderer(TOKENIZER, TemplateConfig(template="chatml"))


def stir(model: PreTrainedModel, *, std: float = 0.3, seed: int = 0) -> PreTrainedModel:
    """Give all matrices large random weights, so that the next token is a chaotic function of the text so far."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.data.normal_(std=std, generator=generator)
    return model.eval()


def stirred_model(max_length: int = 512) -> PreTrainedModel:
    """A stirred Llama with two layers."""
    return stir(build_model(TOKENIZER, hidden_size=32, num_layers=2, max_length=max_length, tie_word_embeddings=False))


def never_stopping(model: PreTrainedModel) -> PreTrainedModel:
    """Take the output row of the stop token away: its logit is 0 and the likeliest token's is not."""
    model.lm_head.weight.data[list(RENDERER.stop_ids)] = 0
    return model


def build(model: PreTrainedModel, rows: int = 4) -> HuggingFaceEngine:
    return HuggingFaceEngine(model, TOKENIZER, RENDERER, max_concurrent=rows)


async def collect(engine: HuggingFaceEngine, prompt: str, options: GenerationOptions) -> list[Delta]:
    return [delta async for delta in engine.generate(prompt, options)]


def text_of(deltas: Sequence[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def sequential(model: PreTrainedModel, asked: Sequence[tuple[str, GenerationOptions]]) -> list[list[Delta]]:
    """The answers one after the other."""

    async def run() -> list[list[Delta]]:
        engine = build(model, rows=1)
        found = [await collect(engine, prompt, options) for prompt, options in asked]
        await engine.close()
        return found

    return asyncio.run(run())


def concurrent(
    model: PreTrainedModel, asked: Sequence[tuple[str, GenerationOptions]], *, rows: int = 4
) -> list[list[Delta]]:
    """The answers, all asked for at once."""

    async def run() -> list[list[Delta]]:
        engine = build(model, rows)
        found = await asyncio.gather(*(collect(engine, prompt, options) for prompt, options in asked))
        await engine.close()
        return found

    return asyncio.run(run())


def varied(count: int, options: GenerationOptions = GREEDY) -> list[tuple[str, GenerationOptions]]:
    """Prompts and answers of unlike lengths."""
    return [
        ("Name three colours. " * (1 + index % 5) + str(index), replace(options, max_new_tokens=3 + index * 5 % 17))
        for index in range(count)
    ]
