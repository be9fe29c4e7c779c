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
from llamafactory.inference.batching import BatchRunner
from llamafactory.inference.engine import Delta, FinishReason, GenerationOptions, TokenLogprob
from llamafactory.inference.grammar import GrammarCompiler
from llamafactory.inference.handover import Outbox
from llamafactory.inference.loading import load_renderer
from llamafactory.inference.row_cache import why_not_shared
from llamafactory.inference.sampling import Answer, Token, new_generator
from llamafactory.inference.streaming import AnswerStream, LogprobQueue
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
    return HuggingFaceEngine(model, bundle.tokenizer, renderer, max_concurrent=_max_concurrent())


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
        self._gives_scores = value_head_of(model) is not None
        self._grammars = GrammarCompiler(tokenizer, renderer.stop_ids)
        self._preparing = threading.Lock()
        self._alone = AloneRunner(model)
        self._batch = None if self._gives_scores else _build_batch(model, max_concurrent)

    def prompt_ids(self, prompt: Conversation | str) -> list[int]:
        """Token ids the model is asked to continue: those of the training renderer; of a text, the tokenizer's own."""
        if isinstance(prompt, str):
            ids: list[int] = self._tokenizer(prompt)["input_ids"]
            return ids
        return self.renderer.prompt_ids(prompt)

    async def generate(self, prompt: Conversation | str, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Stream the answer; see `Engine.generate`."""
        answer = await asyncio.to_thread(self._prepare, prompt, options)
        stream = AnswerStream(
            lambda ids: self._decode(ids, options), stop_ids=self.renderer.stop_ids, stops=options.stop
        )
        logprobs = LogprobQueue(self.renderer.stop_ids)
        async with aclosing(self._tokens(answer)) as tokens:
            async for token in tokens:
                text = stream.push(token.id)
                if options.top_logprobs is not None:
                    logprobs.push(self._named(token))
                if stream.stopped:
                    break
                if text:
                    yield Delta(text, None, len(answer.prompt), stream.num_tokens, logprobs.take(text))
                    text = ""
            else:
                text = stream.finish()
        reason: FinishReason = "stop" if stream.stopped else "length"
        yield Delta(text, reason, len(answer.prompt), stream.num_tokens, logprobs.finish(text, cut=stream.stopped))

    async def score(self, texts: Sequence[str], *, max_length: int | None = None) -> list[float]:
        """Score plain texts with a reward model; see `Engine.score`."""
        if not self._gives_scores:
            raise ModelError(
                "this model gives answers and no scores: it has no value head; load a reward model, trained with "
                "stage: rm, and set stage: rm"
            )
        return await asyncio.to_thread(self._score_rows, texts, max_length)

    def _score_rows(self, texts: Sequence[str], max_length: int | None) -> list[float]:
        with self._preparing:
            rows = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        for number, row in enumerate(rows, start=1):
            if not row:
                raise DataError(f"text {number} is empty; a reward model scores at least one token")
            if max_length is not None and len(row) > max_length:
                raise ModelError(
                    f"text {number} has {len(row)} tokens, max_length is {max_length}; shorten it or raise max_length"
                )
        pad = self._tokenizer.pad_token_id or 0
        return score_sequences(self._model, rows, pad_token_id=pad, batch_size=SCORE_BATCH)

    async def close(self) -> None:
        """Stop running answers and let the model go."""
        await asyncio.to_thread(self._alone.close)
        if self._batch is not None:
            await asyncio.to_thread(self._batch.close)

    async def _tokens(self, answer: Answer) -> AsyncGenerator[Token, None]:
        outbox = Outbox()
        runner = self._batch if self._batch is not None and answer.options.num_beams == 1 else self._alone
        runner.submit(answer, outbox)
        async with aclosing(outbox.read()) as tokens:
            async for token in tokens:
                yield token

    def _prepare(self, prompt: Conversation | str, options: GenerationOptions) -> Answer:
        """The state of a new answer, made beside the event loop: a long prompt takes seconds to become tokens."""
        with self._preparing:
            return self._answer(self.prompt_ids(prompt), options)

    def _answer(self, prompt: list[int], options: GenerationOptions) -> Answer:
        """The state of a new answer. Raises ModelError, ConfigError for what cannot be answered."""
        if self._gives_scores:
            raise ModelError(
                "this model is a reward model, which gives scores and no answers; score texts with it, or load a model "
                "of another stage"
            )
        _refuse_beams(options)
        room = self._room(options, len(prompt))
        grammar = self._grammars.compile(options.json_schema) if options.json_schema else None
        stop_ids = frozenset(self.renderer.stop_ids)
        return Answer(prompt, options, stop_ids, room, grammar, new_generator(options))

    def _room(self, options: GenerationOptions, num_prompt: int) -> int:
        """Tokens the answer may have. Raises ModelError when the prompt leaves none or there is no prompt."""
        if not num_prompt:
            raise ModelError("the prompt has no tokens, so there is nothing to continue; give at least one word")
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        room = options.new_tokens(num_prompt)
        if limit is not None:
            room = min(room, limit - num_prompt)
        if room < 1:
            raise ModelError(
                f"The prompt has {num_prompt} tokens and leaves no room for an answer (model: {limit or 'any'}, "
                f"max_length: {options.max_length}); shorten the conversation or raise max_new_tokens"
            )
        return room

    def _decode(self, ids: Sequence[int], options: GenerationOptions) -> str:
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=options.skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def _named(self, token: Token) -> TokenLogprob:
        def text(token_id: int) -> str:
            return self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)

        top = tuple((text(other), logprob) for other, logprob in token.top)
        return TokenLogprob(token.id, text(token.id), token.logprob or 0.0, top)


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


def _max_concurrent() -> int:
    value = os.environ.get("MAX_CONCURRENT", str(MAX_CONCURRENT))
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"MAX_CONCURRENT: got {value!r} in the environment; give a whole number of at least 1")
    return int(value)
