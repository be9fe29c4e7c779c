"""POST /v1/completions: plain texts to be continued, without a template.

Knows neither thoughts nor tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamafactory.api.answering import Work
from llamafactory.api.bodies import Body, Envelope, Usage, new_id, text_logprobs
from llamafactory.api.conversation import too_long
from llamafactory.api.errors import ApiError
from llamafactory.api.options import completion_options
from llamafactory.api.schema import CompletionRequest
from llamafactory.api.settings import Limits
from llamafactory.api.streaming import Chunks, EventStream
from llamafactory.inference.engine import Delta, GenerationOptions


@dataclass(frozen=True)
class Job:
    """A request that has been understood: every prompt once for each of its answers."""

    request: CompletionRequest
    prompts: Sequence[tuple[str, GenerationOptions]]
    per_prompt: int

    def lead(self, number: int) -> str:
        """What stands before the answer of this number."""
        return self.prompts[number][0] if self.request.echo else ""


class CompletionRoute:
    """Continues texts with one engine."""

    def __init__(self, work: Work, defaults: GenerationOptions, limits: Limits) -> None:
        self._work = work
        self._defaults = defaults
        self._limits = limits

    async def answer(self, body: CompletionRequest, request: Request) -> Response:
        """Answer one request."""
        job = self._understand(body)
        if body.stream:
            return EventStream(self._chunks(job), self._work)
        return JSONResponse(await self._work.while_wanted(self._whole(job), request.receive))

    def _understand(self, body: CompletionRequest) -> Job:
        if body.echo and body.logprobs is not None:
            raise ApiError(
                400,
                "logprobs: the server knows those of the tokens it writes, not those of a prompt; leave out echo",
                param="logprobs",
            )
        texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        check_texts(texts, "prompt", self._limits)
        options = completion_options(body, self._defaults, self._limits)
        return Job(body, [(text, each) for text in texts for each in options], len(options))

    async def _whole(self, job: Job) -> Body:
        usage = Usage()
        choices: list[list[Delta]] = [[] for _ in job.prompts]
        async with aclosing(self._work.answers(job.prompts)) as pieces:
            async for number, delta in pieces:
                choices[number].append(delta)
                if delta.finish_reason is not None:
                    usage.add(number // job.per_prompt, delta)
        found = [_choice(number, job.lead(number), deltas, job.request) for number, deltas in enumerate(choices)]
        return Envelope(job.request.model, "text_completion", new_id("cmpl-")).wrap(found, usage=usage.body())

    async def _chunks(self, job: Job) -> Chunks:
        usage, lengths = Usage(), dict[int, int]()
        envelope = Envelope(job.request.model, "text_completion", new_id("cmpl-"))
        counts = job.request.stream_options is not None and job.request.stream_options.include_usage
        more: Body = {"usage": None} if counts else {}
        async with aclosing(self._work.answers(job.prompts)) as pieces:
            async for number, delta in pieces:
                lead = "" if number in lengths else job.lead(number)
                offset = lengths.get(number, 0)
                choice = _choice(number, lead, [delta], job.request, offset=offset)
                lengths[number] = offset + len(str(choice["text"]))
                if delta.finish_reason is not None:
                    usage.add(number // job.per_prompt, delta)
                yield envelope.wrap([choice], **more)
        if counts:
            yield envelope.wrap([], usage=usage.body())


def _choice(number: int, lead: str, deltas: Sequence[Delta], body: CompletionRequest, *, offset: int = 0) -> Body:
    """An answer, or a piece of one. offset: characters before it."""
    tokens = [token for delta in deltas for token in delta.logprobs]
    return {
        "index": number,
        "text": lead + "".join(delta.text for delta in deltas),
        "logprobs": text_logprobs(tokens, offset + len(lead)) if body.logprobs is not None else None,
        "finish_reason": deltas[-1].finish_reason if deltas else None,
    }


def check_texts(texts: Sequence[str], param: str, limits: Limits) -> None:
    """Raise ApiError for texts that are empty or too long together."""
    found = sum(map(len, texts))
    if found > limits.prompt_chars:
        raise too_long(found, limits.prompt_chars, param)
    for number, text in enumerate(texts):
        if not text:
            raise ApiError(400, f"{param}: number {number} is empty; give a text", param=param)
