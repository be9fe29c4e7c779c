"""Answers from a transformers model in this process: `generate` in a thread, its tokens streamed out as they come.

Knows the model, its tokenizer and renderer; one answer at a time unless MAX_CONCURRENT says otherwise.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from llamafactory.errors import ConfigError, ModelError
from llamafactory.inference.engine import Delta, FinishReason, GenerationOptions
from llamafactory.inference.loading import load_renderer
from llamafactory.inference.streaming import AnswerStream
from llamafactory.models.load import load_model
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.renderer import Renderer

if TYPE_CHECKING:
    from llamafactory.config import RunConfig

Emit = Callable[[int | BaseException | None], None]


def build(config: RunConfig) -> HuggingFaceEngine:
    """Load the model, its adapters and its renderer as `config` says."""
    bundle, renderer = load_renderer(config)
    model = load_model(config, bundle, trainable=False).model
    return HuggingFaceEngine(model, bundle.tokenizer, renderer, max_concurrent=_max_concurrent())


class HuggingFaceEngine:
    """One loaded model. Takes the model over: its own generation defaults are replaced by the options of each call."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        renderer: Renderer,
        *,
        max_concurrent: int = 1,
    ) -> None:
        self.renderer = renderer
        self._model = model.eval()
        self._model.generation_config = GenerationConfig()
        self._tokenizer = tokenizer
        self._slots = asyncio.Semaphore(max_concurrent)
        self._pool = ThreadPoolExecutor(max_concurrent, thread_name_prefix="generate")
        self._closing = threading.Event()

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """Token ids the model is asked to continue: those of the training renderer."""
        return self.renderer.prompt_ids(conversation)

    async def generate(self, conversation: Conversation, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Stream the answer; see `Engine.generate`."""
        prompt = self.prompt_ids(conversation)
        settings = self._settings(options, len(prompt))
        stream = AnswerStream(
            lambda ids: self._decode(ids, options), stop_ids=self.renderer.stop_ids, stops=options.stop
        )
        async with self._slots, aclosing(self._tokens(prompt, settings, options.seed)) as tokens:
            async for token in tokens:
                text = stream.push(token)
                if stream.stopped:
                    break
                if text:
                    yield Delta(text, None, len(prompt), stream.num_tokens)
                    text = ""
            else:
                text = stream.finish()
        reason: FinishReason = "stop" if stream.stopped else "length"
        yield Delta(text, reason, len(prompt), stream.num_tokens)

    async def close(self) -> None:
        """Stop running answers and let the model go."""
        self._closing.set()
        await asyncio.to_thread(self._pool.shutdown, wait=True)

    async def _tokens(
        self, prompt: list[int], settings: GenerationConfig, seed: int | None
    ) -> AsyncGenerator[int, None]:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[int | BaseException | None] = asyncio.Queue()
        cancelled = threading.Event()

        def emit(item: int | BaseException | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, item)

        work = loop.run_in_executor(self._pool, self._run, prompt, settings, seed, emit, cancelled)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            cancelled.set()
            await asyncio.shield(work)

    def _run(
        self, prompt: list[int], settings: GenerationConfig, seed: int | None, emit: Emit, cancelled: threading.Event
    ) -> None:
        """Generate in this thread; every token, an exception, and at the end None go to `emit`."""
        ids = torch.tensor([prompt], device=self._model.device)
        streams = settings.num_beams == 1
        try:
            with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
                if seed is not None:
                    torch.manual_seed(seed)
                found = self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=settings,
                    streamer=_TokenStreamer(emit) if streams else None,
                    stopping_criteria=StoppingCriteriaList([_StopWhen(cancelled, self._closing)]),
                )
            if not streams:
                for token in found[0, len(prompt) :].tolist():
                    emit(token)
        except BaseException as error:
            emit(error)
        finally:
            emit(None)

    def _settings(self, options: GenerationOptions, num_prompt: int) -> GenerationConfig:
        room = self._room(options, num_prompt)
        sampling = {} if options.is_greedy else _sampling(options)
        stop_ids = list(self.renderer.stop_ids)
        return GenerationConfig(
            max_new_tokens=room,
            do_sample=not options.is_greedy,
            num_beams=options.num_beams,
            repetition_penalty=options.repetition_penalty,
            length_penalty=options.length_penalty,
            use_cache=bool(self._model.config.use_cache),
            eos_token_id=stop_ids,
            pad_token_id=stop_ids[0] if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id,
            **sampling,
        )

    def _room(self, options: GenerationOptions, num_prompt: int) -> int:
        """Tokens the answer may have. Raises ModelError when the prompt leaves none."""
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


class _TokenStreamer(BaseStreamer):
    """Hand tokens over as `generate` makes them; its first call brings the prompt."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if not self._saw_prompt:
            self._saw_prompt = True
            return
        for token in value.reshape(-1).tolist():
            self._emit(token)

    def end(self) -> None:
        return


class _StopWhen(StoppingCriteria):
    """End the generation after the current token when any of the events is set."""

    def __init__(self, *events: threading.Event) -> None:
        self._events = events

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        stop = any(event.is_set() for event in self._events)
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)


def _sampling(options: GenerationOptions) -> dict[str, float | int]:
    return {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}


def _max_concurrent() -> int:
    value = os.environ.get("MAX_CONCURRENT", "1")
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"MAX_CONCURRENT: got {value!r} in the environment; give a whole number of at least 1")
    return int(value)
