"""Answers from a transformers model in this process.

Knows the model, its tokenizer and renderer, and turns options into tokens and tokens into text.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llamafactory.errors import ConfigError, DataError, ModelError
from llamafactory.inference.alone import AloneRunner
from llamafactory.inference.answer_text import AnswerText, room_for_answer
from llamafactory.inference.batching import BatchRunner
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.inference.grammar import GrammarCompiler
from llamafactory.inference.handover import Outbox
from llamafactory.inference.loading import load_renderer
from llamafactory.inference.row_cache import why_not_shared
from llamafactory.inference.sampling import Answer, new_generator
from llamafactory.logs import notice
from llamafactory.models.load import load_model
from llamafactory.models.reward import score_sequences
from llamafactory.models.value_head import value_head_of
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.renderer import Renderer

if TYPE_CHECKING:
    from llamafactory.config import RunConfig

SCORE_BATCH = 8  # sequences of one forward pass
MAX_CONCURRENT = 16  # answers decoded together unless the environment says otherwise


def build(config: RunConfig) -> HuggingFaceEngine:
    """Load the model, its adapters, a reward model's value head and the renderer as `config` says."""
    bundle, renderer = load_renderer(config)
    scores = config.finetuning.stage == "rm"
    model = load_model(config, bundle, trainable=False, head="value" if scores else "lm").model
    return HuggingFaceEngine(model, bundle.tokenizer, renderer, max_concurrent=_max_concurrent(config))


class HuggingFaceEngine:
    """One loaded model. Takes the model over: its own generation defaults are replaced by the options of each call."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        *,
        max_concurrent: int = MAX_CONCURRENT,
    ) -> None:
        self.renderer = renderer
        self._model = model.eval()
        self._model.generation_config = GenerationConfig()
        self._tokenizer = tokenizer
        self._texts = AnswerText(tokenizer, renderer)
        self._gives_scores = value_head_of(model) is not None
        self._grammars = GrammarCompiler(tokenizer, renderer.stop_ids)
        self._preparing = threading.Lock()  # a renderer keeps what it made, for one thread at a time
        self._alone = AloneRunner(model)
        self._batch = None if self._gives_scores else _build_batch(model, max_concurrent)

    def prompt_ids(self, prompt: Conversation | str) -> list[int]:
        """Token ids the model is asked to continue."""
        return self._texts.prompt_ids(prompt)

    async def generate(self, prompt: Conversation | str, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Stream the answer; see `Engine.generate`."""
        answer = await asyncio.to_thread(self._answer, prompt, options)  # a long prompt takes seconds to become tokens
        if options.json_schema:  # a large schema takes a second to compile
            answer.grammar = await asyncio.to_thread(self._grammars.compile, options.json_schema)
        outbox = Outbox()
        runner = self._batch if self._batch is not None and options.num_beams == 1 else self._alone
        runner.submit(answer, outbox)
        async with (
            aclosing(outbox.read()) as tokens,
            aclosing(self._texts.deltas(tokens, len(answer.prompt), options)) as deltas,
        ):
            async for delta in deltas:
                yield delta

    async def score(self, texts: Sequence[str], *, max_length: int | None = None) -> list[float]:
        """Score plain texts with a reward model; see `Engine.score`."""
        if not self._gives_scores:
            raise ModelError(
                "this model gives answers and no scores: it has no value head; load a reward model, trained with "
                "stage: rm, and set stage: rm"
            )
        rows = await asyncio.to_thread(self._rows_to_score, texts, max_length)
        pad = self._tokenizer.pad_token_id or 0
        return await self._alone.call(
            lambda: score_sequences(self._model, rows, pad_token_id=pad, batch_size=SCORE_BATCH)
        )

    def _rows_to_score(self, texts: Sequence[str], max_length: int | None) -> list[list[int]]:
        with self._preparing:
            rows = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        for number, row in enumerate(rows, start=1):
            if not row:
                raise DataError(f"text {number} is empty; a reward model scores at least one token")
            if max_length is not None and len(row) > max_length:
                raise ModelError(
                    f"text {number} has {len(row)} tokens, max_length is {max_length}; shorten it or raise max_length"
                )
        return rows

    async def close(self) -> None:
        """Stop running answers and let the model go."""
        await asyncio.to_thread(self._alone.close)
        if self._batch is not None:
            await asyncio.to_thread(self._batch.close)

    def _answer(self, prompt: Conversation | str, options: GenerationOptions) -> Answer:
        """The state of a new answer. Raises ModelError, ConfigError for what cannot be answered."""
        if self._gives_scores:
            raise ModelError(
                "this model is a reward model, which gives scores and no answers; score texts with it, or load a model "
                "of another stage"
            )
        _refuse_beams(options)
        with self._preparing:
            ids = self._texts.prompt_ids(prompt)
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        room = room_for_answer(options, len(ids), limit)
        stop_ids = frozenset(self.renderer.stop_ids)
        return Answer(ids, options, stop_ids, room, generator=new_generator(options))


def _refuse_beams(options: GenerationOptions) -> None:
    """Raise ConfigError for options that beam search cannot follow."""
    if options.num_beams == 1:
        return
    given = {
        "top_logprobs": options.top_logprobs is not None,
        "json_schema": bool(options.json_schema),
        "presence_penalty": options.presence_penalty != 0,
        "frequency_penalty": options.frequency_penalty != 0,
    }
    for name in (name for name, is_given in given.items() if is_given):
        raise ConfigError(f"{name}: beam search (num_beams: {options.num_beams}) cannot follow it; set num_beams: 1")


def _build_batch(model: PreTrainedModel, max_rows: int) -> BatchRunner | None:
    """What decodes answers together; None, with a notice, for a model whose answers must be made one by one."""
    reason = why_not_shared(model)
    if reason:
        notice(f"answers of this model are made one at a time, not together, because {reason}")
        return None
    return BatchRunner(model, max_rows=max_rows)


def _max_concurrent(config: RunConfig) -> int:
    """Answers decoded together: what the environment says, else the batch size given for predictions."""
    default = config.training.per_device_eval_batch_size if config.asks_in_batches else MAX_CONCURRENT
    value = os.environ.get("MAX_CONCURRENT", str(default))
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"MAX_CONCURRENT: got {value!r} in the environment; give a whole number of at least 1")
    return int(value)
