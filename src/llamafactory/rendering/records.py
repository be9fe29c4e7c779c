"""What a data row means: a closed set of records. Formats produce them, the renderer consumes them.

Knows no tokenizer, no template and no file format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["user", "assistant", "function", "observation"]
TRAINED_ROLES = frozenset({"assistant", "function"})


@dataclass(frozen=True, slots=True)
class Message:
    """One turn's text.

    role: `function` is an assistant message whose content is JSON tool calls; `observation` is a tool result.
    loss: weight of the message's tokens in the loss; None leaves the decision to the run's options, 0 masks it.
    """

    role: Role
    content: str
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Media:
    """Paths (or frame lists) of the media named by placeholders in the text, in order of appearance."""

    images: tuple[object, ...] = ()
    videos: tuple[object, ...] = ()
    audios: tuple[object, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.images or self.videos or self.audios)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, without the system prompt. `tools` is the JSON text of the tool schemas, or an empty string."""

    messages: tuple[Message, ...]
    system: str = ""
    tools: str = ""
    media: Media = field(default_factory=Media)
    source: str = ""  # "file:row", rows counted from 1


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for pre-training."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt with a better and a worse answer."""

    prompt: Conversation
    chosen: Message
    rejected: Message

    @property
    def source(self) -> str:
        return self.prompt.source


@dataclass(frozen=True, slots=True)
class Feedback:
    """A conversation whose last answer was judged desirable or not."""

    conversation: Conversation
    desirable: bool

    @property
    def source(self) -> str:
        return self.conversation.source


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt to answer; `reference` is the expected answer, or an empty string.

    reference_role: `function` when the reference is tool calls.
    """

    conversation: Conversation
    reference: str = ""
    reference_role: Role = "assistant"

    @property
    def source(self) -> str:
        return self.conversation.source


Record = Text | Conversation | Preference | Feedback | Prompt
