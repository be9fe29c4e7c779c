"""One answer at a time through the model's own `generate`: beam search, and models whose rows cannot share a cache.

Knows the model; no text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from llamafactory.errors import ModelError
from llamafactory.inference.engine import EngineFailure
from llamafactory.inference.handover import Outbox
from llamafactory.inference.sampling import Answer, Token, choose

Result = TypeVar("Result")


class AloneRunner:
    """Runs answers in a thread of its own, in the order they came."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="generate")
        self._closed = False

    def submit(self, answer: Answer, outbox: Outbox) -> None:
        """Begin as soon as those before are done; tokens, an exception, and at the end None go to `outbox`."""
        try:
            self._pool.submit(self._run, answer, outbox)
        except RuntimeError:  # the pool is shut down
            outbox.put(closed_error())

    async def call(self, work: Callable[[], Result]) -> Result:
        """Do something else with the model in the same thread, after what is in line."""
        try:
            future = self._pool.submit(work)
        except RuntimeError as error:
            raise closed_error() from error
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Stop what runs and wait for the thread; answers not begun end with an error."""
        self._closed = True
        self._pool.shutdown(wait=True)

    def _run(self, answer: Answer, outbox: Outbox) -> None:
        try:
            if not outbox.cancelled.is_set() and not self._closed:
                (self._search if answer.options.num_beams > 1 else self._sample)(answer, outbox)
            if self._closed:
                outbox.put(closed_error())
        except BaseException as error:
            outbox.put(error)
        finally:
            outbox.put(None)

    def _sample(self, answer: Answer, outbox: Outbox) -> None:
        settings = GenerationConfig(max_new_tokens=answer.limit, do_sample=False)
        self._generate(answer, outbox, settings, LogitsProcessorList([_Chooser(answer, outbox)]))

    def _search(self, answer: Answer, outbox: Outbox) -> None:
        settings = _beam_settings(answer)
        with torch.random.fork_rng(enabled=answer.options.seed is not None):
            if answer.options.seed is not None:
                torch.manual_seed(answer.options.seed)
            found = self._generate(answer, outbox, settings, LogitsProcessorList())
        for token in found[0, len(answer.prompt) :].tolist():
            outbox.put(Token(token))

    def _generate(
        self, answer: Answer, outbox: Outbox, settings: GenerationConfig, processors: LogitsProcessorList
    ) -> Tensor:
        settings.eos_token_id = list(answer.stop_ids)
        settings.pad_token_id = min(answer.stop_ids, default=0)
        settings.use_cache = self._model.config.use_cache
        ids = torch.tensor([answer.prompt], device=self._model.device)
        stopping = _StopWhen(lambda: self._closed or outbox.cancelled.is_set())
        with torch.inference_mode():
            found: Tensor = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stopping]),
            )
        return found


def closed_error() -> EngineFailure:
    """What an answer ends with when its engine closes."""
    return EngineFailure("the engine was closed before the answer was complete; build it again to ask again")


def _beam_settings(answer: Answer) -> GenerationConfig:
    options = answer.options
    drawing = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k}
    return GenerationConfig(
        max_new_tokens=answer.limit,
        do_sample=not options.is_greedy,
        num_beams=options.num_beams,
        repetition_penalty=options.repetition_penalty,
        length_penalty=options.length_penalty,
        **({} if options.is_greedy else drawing),
    )


class _Chooser(LogitsProcessor):
    """Chooses the token as a batch would and leaves `generate` no other."""

    def __init__(self, answer: Answer, outbox: Outbox) -> None:
        self._answer = answer
        self._outbox = outbox

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        (token,) = choose(scores, [self._answer])
        if isinstance(token, ModelError):
            raise token
        self._outbox.put(token)
        only = torch.full_like(scores, float("-inf"))
        only[0, token.id] = 0
        return only


class _StopWhen(StoppingCriteria):
    """End the generation after the current token when `asked` says so."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full((input_ids.shape[0],), self._asked(), dtype=torch.bool, device=input_ids.device)
