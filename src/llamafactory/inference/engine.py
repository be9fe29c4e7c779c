"""What an engine is: conversations in, streamed text out. Chat, servers and prediction know engines by this file alone.

Knows no model library; the engines live in `engines/`, one file per `infer_backend`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from llamafactory.errors import ModelError
from llamafactory.parts import Family
from llamafactory.rendering.records import Conversation

if TYPE_CHECKING:
    from llamafactory.config import RunConfig
    from llamafactory.config.sections.generation import GenerationConfig
    from llamafactory.rendering.renderer import Renderer

ENGINES = Family(key="infer_backend", package="llamafactory.inference.engines", exports=("build",))

FinishReason = Literal["stop", "length"]


class EngineFailure(ModelError):
    """The engine could not go on: no fault of what was asked, which may be asked again."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one answer is made.

    temperature 0 and do_sample false both mean greedy. top_k 0 keeps all tokens. max_new_tokens 0 leaves the limit to
    max_length (prompt and answer together). stop: texts that end the answer and are not part of it. seed: None draws
    from the process's random state. presence_penalty and frequency_penalty are subtracted from the logits of tokens of
    the answer so far, once or per occurrence, as OpenAI defines them. top_logprobs: report each token's log-probability
    and so many alternatives; None reports nothing. json_schema: JSON text of a schema the answer must follow, "{}" for
    any JSON object; empty leaves the answer free.
    """

    do_sample: bool = True
    temperature: float = 0.95
    top_p: float = 0.7
    top_k: int = 50
    num_beams: int = 1
    max_length: int = 1024
    max_new_tokens: int = 1024
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    skip_special_tokens: bool = True
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None
    json_schema: str = ""

    @classmethod
    def from_config(cls, config: GenerationConfig) -> GenerationOptions:
        """The options a run's configuration asks for."""
        return cls(
            do_sample=config.do_sample,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=max(config.top_k, 0),
            num_beams=config.num_beams,
            max_length=config.max_length,
            max_new_tokens=config.max_new_tokens,
            repetition_penalty=config.repetition_penalty,
            length_penalty=config.length_penalty,
            skip_special_tokens=config.skip_special_tokens,
        )

    @property
    def is_greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0

    def new_tokens(self, prompt_tokens: int) -> int:
        """Room for the answer after a prompt of so many tokens; zero or less when there is none."""
        return self.max_new_tokens if self.max_new_tokens > 0 else self.max_length - prompt_tokens


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, its natural log-probability before sampling changes it, and the likeliest alternatives."""

    token_id: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer.

    text: never half a character, never a stop token. finish_reason: set on the last piece alone. prompt_tokens and
    completion_tokens count from the start of the answer; the stop token counts. logprobs: of the tokens this piece
    consists of, when asked for.
    """

    text: str
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class Engine(Protocol):
    """Something that answers conversations, several at a time if it can.

    renderer: made the prompts; it also reads tool calls and thoughts out of answers.
    """

    renderer: Renderer

    def generate(self, prompt: Conversation | str, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        """Stream the answer to a conversation whose last message is not the assistant's, or the rest of a plain text.

        Closing the iterator early stops the work and frees its place. Raises ModelError when the prompt does not fit
        or the model gives scores instead of answers, ConfigError for an option this engine cannot follow.
        """
        ...

    async def score(self, texts: Sequence[str], *, max_length: int | None = None) -> list[float]:
        """What a reward model thinks of each text, which is read as it is, without a template.

        Raises ModelError when the model gives answers instead of scores, or a text is longer than max_length.
        """
        ...

    async def close(self) -> None:
        """Stop running answers and free the model's memory."""
        ...


def build_engine(config: RunConfig) -> Engine:
    """Build the engine that `infer_backend` names, with its model loaded."""
    engine: Engine = ENGINES.load(config.model.infer_backend).build(config)
    return engine
