"""POST /v1/chat/completions: one conversation, one or several answers, whole or streamed.

Knows how an answer's parts become a message; neither sampling nor media.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamafactory.api.answering import Work
from llamafactory.api.bodies import Body, Envelope, Usage, call_body, call_deltas, chat_logprobs, new_id
from llamafactory.api.conversation import ConversationReader, check_chars, offered_tools, tool_schemas
from llamafactory.api.options import chat_options, check_tools, is_forced
from llamafactory.api.schema import ChatRequest
from llamafactory.api.settings import Limits
from llamafactory.api.streaming import Chunks, EventStream
from llamafactory.inference.answer_parts import (
    AnswerReader,
    CallReader,
    FormatCalls,
    JsonCalls,
    NoCalls,
    Piece,
    ThoughtReader,
    needs_controls,
)
from llamafactory.inference.engine import Delta, FinishReason, GenerationOptions, TokenLogprob
from llamafactory.rendering.calls import ToolCall
from llamafactory.rendering.records import Conversation, Message
from llamafactory.rendering.renderer import Renderer
from llamafactory.rendering.tools import load_tool_format


@dataclass(frozen=True)
class Job:
    """A request that has been understood."""

    request: ChatRequest
    conversation: Conversation
    options: Sequence[GenerationOptions]
    readers: Sequence[AnswerReader]

    @property
    def prompts(self) -> list[tuple[Conversation, GenerationOptions]]:
        return [(self.conversation, options) for options in self.options]


class ChatRoute:
    """Answers chats with one engine."""

    def __init__(self, work: Work, reader: ConversationReader, defaults: GenerationOptions, limits: Limits) -> None:
        self._work = work
        self._reader = reader
        self._defaults = defaults
        self._limits = limits
        self._begun = opens_thought(work.engine.renderer)

    async def answer(self, body: ChatRequest, request: Request) -> Response:
        """Answer one request."""
        job = await self._work.while_wanted(self._understand(body), request.receive)
        if body.stream:
            return EventStream(self._chunks(job), self._work)
        return JSONResponse(await self._work.while_wanted(self._whole(job), request.receive))

    async def _understand(self, body: ChatRequest) -> Job:
        check_tools(body)
        check_chars(body, self._limits.prompt_chars)
        options = chat_options(body, self._defaults, self._limits)
        conversation = await self._reader.read(body)
        renderer = self._work.engine.renderer
        if needs_controls(renderer, renderer.reasoning_words or (), calls=bool(offered_tools(body))):
            options = [_showing_controls(each) for each in options]
        # A schema holds from the first token, so such an answer has no thought, whatever its prompt ends with.
        begun = self._begun and not options[0].json_schema
        readers = [_answer_reader(body, renderer, begun=begun) for _ in options]
        return Job(body, conversation, options, readers)

    async def _whole(self, job: Job) -> Body:
        usage, choices = Usage(), [_Choice(reader) for reader in job.readers]
        async with aclosing(self._work.answers(job.prompts)) as pieces:
            async for number, delta in pieces:
                choices[number].add(delta)
                if delta.finish_reason is not None:
                    usage.add(0, delta)
        envelope = Envelope(job.request.model, "chat.completion", new_id("chatcmpl-"))
        logprobs = bool(job.request.logprobs)
        return envelope.wrap(
            [choice.body(number, logprobs=logprobs) for number, choice in enumerate(choices)], usage=usage.body()
        )

    async def _chunks(self, job: Job) -> Chunks:
        usage, begun = Usage(), set[int]()
        envelope = Envelope(job.request.model, "chat.completion.chunk", new_id("chatcmpl-"))
        counts = job.request.stream_options is not None and job.request.stream_options.include_usage
        more: Body = {"usage": None} if counts else {}
        async with aclosing(self._work.answers(job.prompts)) as pieces:
            async for number, delta in pieces:
                if number not in begun:
                    begun.add(number)
                    yield envelope.wrap([_piece(number, {"role": "assistant", "content": ""})], **more)
                for choice in _pieces(number, job.readers[number], delta, logprobs=bool(job.request.logprobs)):
                    yield envelope.wrap([choice], **more)
                if delta.finish_reason is not None:
                    usage.add(0, delta)
        if counts:
            yield envelope.wrap([], usage=usage.body())


class _Choice:
    """Collects one answer."""

    def __init__(self, reader: AnswerReader) -> None:
        self._reader = reader
        self._pieces: list[Piece] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: FinishReason = "stop"

    def add(self, delta: Delta) -> None:
        self._pieces.append(self._reader.push(delta.text))
        self._logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self._pieces.append(self._reader.finish())
            self._finish = delta.finish_reason

    def body(self, index: int, *, logprobs: bool) -> Body:
        """The choice of this number in the answer."""
        text = "".join(piece.text for piece in self._pieces)
        thought = "".join(piece.thought for piece in self._pieces)
        calls = [call for piece in self._pieces for call in piece.calls]
        message: Body = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if thought:
            message["reasoning_content"] = thought
        if calls:
            message["tool_calls"] = [call_body(call, new_id("call_")) for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(self._logprobs) if logprobs else None,
            "finish_reason": _finish_reason(self._finish, calls),
        }


def _pieces(index: int, reader: AnswerReader, delta: Delta, *, logprobs: bool) -> list[Body]:
    """The chunks' choices for one piece of an answer; the last one names the reason of its end."""
    pieces = [reader.push(delta.text)]
    if delta.finish_reason is not None:
        pieces.append(reader.finish())
    found: list[Body] = []
    for piece in pieces:
        found += [{"reasoning_content": piece.thought}] if piece.thought else []
        found += [{"content": piece.text}] if piece.text else []
        found += call_deltas(piece.calls)
    if not found and delta.logprobs:
        found.append({"content": ""})
    choices = [_piece(index, part) for part in found]
    if logprobs and choices:
        choices[0]["logprobs"] = chat_logprobs(delta.logprobs)
    if delta.finish_reason is not None:
        calls = [call for piece in pieces for call in piece.calls]
        choices.append(_piece(index, {}, _finish_reason(delta.finish_reason, calls)))
    return choices


def _piece(index: int, delta: Body, finish_reason: str | None = None) -> Body:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _finish_reason(reason: FinishReason, calls: Sequence[ToolCall]) -> str:
    return "tool_calls" if calls and reason == "stop" else reason


def opens_thought(renderer: Renderer) -> bool:
    """True when prompts end with the words that open a thought, so that answers begin inside it."""
    words = renderer.reasoning_words
    probe = Conversation((Message("user", "a"),))
    return words is not None and renderer.text(probe, generation=True).rstrip().endswith(words[0])


def _answer_reader(body: ChatRequest, renderer: Renderer, *, begun: bool) -> AnswerReader:
    """What reads one answer. begun: the prompt has opened a thought already."""
    thoughts = ThoughtReader(renderer.reasoning_words, begun=begun)
    return AnswerReader(thoughts, _call_reader(body, renderer), max_calls=1 if body.parallel_tool_calls is False else 0)


def _call_reader(body: ChatRequest, renderer: Renderer) -> CallReader:
    if is_forced(body):
        return JsonCalls()
    tools = tool_schemas(body)
    return FormatCalls(load_tool_format(renderer.tool_format), tools) if tools else NoCalls()


def _showing_controls(options: GenerationOptions) -> GenerationOptions:
    return replace(options, skip_special_tokens=False)
