"""Answers sampled by a model in training, with a key-value cache.

Every answer has random numbers of its own, drawn from a seed and the answer's place in the run: how prompts are split
over batches and processes changes no answer, and no random state has to be kept. Knows no reward and no loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llamafactory.config.sections.generation import GenerationConfig as Options
from llamafactory.errors import ConfigError, ModelError
from llamafactory.objectives import Batch
from llamafactory.training.reference import Autocast

Key = tuple[object, ...]


@dataclass(frozen=True)
class AnswerSampler:
    """Samples one answer to every prompt of a batch.

    stop_ids: an answer ends behind the first of them. autocast: context of number formats in which the model computes.
    """

    options: Options
    stop_ids: tuple[int, ...]
    pad_token_id: int
    autocast: Autocast

    def __call__(self, model: nn.Module, prompts: Batch, keys: Sequence[Key]) -> list[list[int]]:
        """Token ids of B answers, each with its stop token, if it came to one; at least one token.

        model: unwrapped, in evaluation mode. prompts: input_ids and attention_mask [B, T], padded on the left. keys:
        what the random numbers of each answer are drawn from. Raises ConfigError when a prompt leaves no room.
        """
        core: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        width, device = prompts["input_ids"].shape[1], prompts["input_ids"].device
        room = self._room(core, width)
        processors = LogitsProcessorList()
        if self.options.do_sample and self.options.temperature:
            draws = torch.stack([uniform_draws(room, key) for key in keys])
            processors.append(_Draw(self._warpers(), draws.to(device), width))
        with torch.no_grad(), self.autocast(), _own_defaults(core):
            found = core.generate(
                input_ids=prompts["input_ids"],
                attention_mask=prompts["attention_mask"],
                generation_config=self._settings(room),
                logits_processor=processors,
            )
        return [self._cut(row) for row in found[:, width:].tolist()]

    def _room(self, core: Any, width: int) -> int:
        options = self.options
        room = options.max_new_tokens or options.max_length - width
        limit = getattr(core.config.get_text_config(), "max_position_embeddings", None)
        room = room if limit is None else min(room, limit - width)
        if room < 1:
            raise ConfigError(
                f"cutoff_len: a prompt of {width} tokens leaves no room for an answer (positions of the model: "
                f"{limit or 'any'}, max_length: {options.max_length}); lower cutoff_len, or set max_new_tokens"
            )
        return room

    def _settings(self, room: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=False,  # drawing is the last logits processor, which leaves one token to choose
            repetition_penalty=self.options.repetition_penalty,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.pad_token_id,
            use_cache=True,
        )

    def _warpers(self) -> LogitsProcessorList:
        warpers = LogitsProcessorList([TemperatureLogitsWarper(self.options.temperature)])
        if self.options.top_k > 0:
            warpers.append(TopKLogitsWarper(self.options.top_k))
        if self.options.top_p < 1:
            warpers.append(TopPLogitsWarper(self.options.top_p))
        return warpers

    def _cut(self, tokens: list[int]) -> list[int]:
        end = next((place for place, token in enumerate(tokens) if token in self.stop_ids), len(tokens) - 1)
        return tokens[: end + 1]


def uniform_draws(count: int, key: Key) -> Tensor:
    """[count] fp64 in [0, 1), the same for the same key on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(count, dtype=torch.float64, generator=generator)


class _Draw(LogitsProcessor):
    """Leaves the one token that a uniform number picks from the cumulated probabilities of each row.

    draws: [B, R] fp64, one column for each token of the answer. width: tokens of the prompt.
    """

    def __init__(self, warpers: LogitsProcessorList, draws: Tensor, width: int) -> None:
        self._warpers, self._draws, self._width = warpers, draws, width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        summed = self._warpers(input_ids, scores.float()).double().softmax(-1).cumsum(-1)
        total = summed[:, -1:]
        if not total.isfinite().all():
            raise ModelError(
                "training: the policy's probabilities are no longer finite, so it cannot answer; start again from an "
                "earlier checkpoint with a lower learning_rate, or with bf16: true instead of fp16"
            )
        place = input_ids.shape[1] - self._width
        target = self._draws[:, place : place + 1] * total
        token = torch.searchsorted(summed, target, right=True).clamp(max=summed.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(-1, token, 0.0)


@contextmanager
def _own_defaults(core: Any) -> Iterator[None]:
    """A model that brings no generation settings of its own into the ones it is called with."""
    kept, core.generation_config = core.generation_config, GenerationConfig()
    try:
        yield
    finally:
        core.generation_config = kept
