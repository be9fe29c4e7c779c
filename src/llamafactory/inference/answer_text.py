"""Prompts into token ids and answers back into text, the same way for every engine.

Knows the tokenizer and the renderer; no model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from llamafactory.errors import ModelError
from llamafactory.inference.engine import Delta, FinishReason, GenerationOptions, TokenLogprob
from llamafactory.inference.sampling import Token
from llamafactory.inference.streaming import AnswerStream, LogprobQueue
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.renderer import Renderer


@dataclass(frozen=True)
class AnswerText:
    """What an engine needs besides its model. stop_ids: the tokens that end an answer."""

    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(self.renderer.stop_ids)

    def prompt_ids(self, prompt: Conversation | str) -> list[int]:
        """Token ids the model is asked to continue: those of the training renderer; of a text, the tokenizer's own."""
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
            return ids
        return self.renderer.prompt_ids(prompt)

    async def deltas(
        self, tokens: AsyncGenerator[Token, None], num_prompt: int, options: GenerationOptions
    ) -> AsyncGenerator[Delta, None]:
        """Tokens as pieces of text, until a stop token, a stop text, or their end, which is the limit."""
        stream = AnswerStream(
            lambda ids: self._decode(ids, skip_special_tokens=options.skip_special_tokens),
            stop_ids=self.stop_ids,
            stops=options.stop,
        )
        logprobs = LogprobQueue(self.stop_ids)
        async for token in tokens:
            text = stream.push(token.id)
            if options.top_logprobs is not None:
                logprobs.push(self._named(token))
            if stream.stopped:
                break
            if text:
                yield Delta(text, None, num_prompt, stream.num_tokens, logprobs.take(text))
                text = ""
        else:
            text = stream.finish()
        await tokens.aclose()  # the place is free before the last piece is shown
        reason: FinishReason = "stop" if stream.stopped else "length"
        yield Delta(text, reason, num_prompt, stream.num_tokens, logprobs.finish(text, cut=stream.stopped))

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text: str = self.tokenizer.decode(
            list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def _named(self, token: Token) -> TokenLogprob:
        top = tuple((self._decode([other], skip_special_tokens=False), logprob) for other, logprob in token.top)
        return TokenLogprob(token.id, self._decode([token.id], skip_special_tokens=False), token.logprob or 0.0, top)


def room_for_answer(options: GenerationOptions, num_prompt: int, limit: int | None) -> int:
    """Tokens an answer may have. limit: positions of the model. Raises ModelError when there are none, or no prompt."""
    if not num_prompt:
        raise ModelError("the prompt has no tokens, so there is nothing to continue; give at least one word")
    room = options.new_tokens(num_prompt)
    if limit is not None:
        room = min(room, limit - num_prompt)
    if room < 1:
        raise ModelError(
            f"The prompt has {num_prompt} tokens and leaves no room for an answer (model: {limit or 'any'}, "
            f"max_length: {options.max_length}); shorten the conversation or raise max_new_tokens"
        )
    return room
