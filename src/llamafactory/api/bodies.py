"""The bodies of answers in OpenAI's shape: choices, pieces of choices, usage and log-probabilities.

Knows shapes and names, not where the texts come from.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from llamafactory.inference.engine import Delta, TokenLogprob
from llamafactory.rendering.calls import ToolCall

Body = dict[str, object]
_LEAST_LOGPROB = -9999.0
_NO_CHARACTER = "\ufffd"


def new_id(prefix: str) -> str:
    """A name nobody can guess."""
    return f"{prefix}{secrets.token_hex(16)}"


@dataclass(frozen=True)
class Envelope:
    """What is around the choices of an answer and of each of its chunks."""

    model: str
    kind: str
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def wrap(self, choices: Sequence[Body], **more: object) -> Body:
        """A whole answer, or a chunk of one."""
        head = {"id": self.id, "object": self.kind, "created": self.created, "model": self.model}
        return {**head, "choices": list(choices), **more}


class Usage:
    """Counts tokens: a prompt once, however many answers it has."""

    def __init__(self) -> None:
        self._prompts: dict[int, int] = {}
        self._completion = 0

    def add(self, prompt: int, last: Delta) -> None:
        """Add a finished answer to the prompt of this number."""
        self._prompts[prompt] = last.prompt_tokens
        self._completion += last.completion_tokens

    def body(self) -> Body:
        """The counts."""
        prompt = sum(self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
        }


def call_body(call: ToolCall, call_id: str) -> Body:
    """A call of a tool."""
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}


def call_deltas(calls: Iterable[ToolCall]) -> Iterable[Body]:
    """The calls as pieces of a stream: of each the name, then its arguments."""
    for index, call in enumerate(calls):
        head = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": new_id("call_"), "type": "function", "function": head}]}
        yield {"tool_calls": [{"index": index, "function": {"arguments": call.arguments_json}}]}


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> Body:
    """Log-probabilities of a chat's tokens."""
    content = [
        {**_token(token.text, token.logprob), "top_logprobs": [_token(*other) for other in token.top]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> Body:
    """Log-probabilities of a plain text's tokens. offset: characters before the first of them."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: _finite(value) for text, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _token(text: str, logprob: float) -> Body:
    whole = _NO_CHARACTER not in text
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
