"""What a chat template is: frozen slots around messages, and the finding of templates by name.

A slot is a tuple of parts: literal text (control tokens in it are looked up), `CONTENT`, `TURN`, `Special` and `Token`.
Knows no tokenizer; values of one run never reach another, since nothing here can be changed after import.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llamafactory.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Placeholder:
    """Where the text of a message, or the number of the turn, is put."""

    name: Literal["content", "turn"]


@dataclass(frozen=True, slots=True)
class Special:
    """The tokenizer's own beginning or end token; nothing when the tokenizer has none."""

    name: Literal["bos", "eos"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token looked up by its text; the tokenizer must have it."""

    text: str


Part = str | Placeholder | Special | Token
Slot = tuple[Part, ...]

CONTENT = Placeholder("content")
TURN = Placeholder("turn")
BOS = Special("bos")
EOS = Special("eos")

THINK = ("<think>\n", "\n</think>\n\n")


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """Placeholder tokens of each modality, empty where a template has none, and the name of what expands them.

    vision_ends, audio_ends, time_ends: tokens before and behind what a placeholder is expanded to.
    """

    processor: str = ""
    image: str = ""
    video: str = ""
    audio: str = ""
    vision_ends: tuple[str, str] = ("", "")
    audio_ends: tuple[str, str] = ("", "")
    time_ends: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Template:
    """One chat template.

    prefix: before everything. user, observation, system: what surrounds the message; `generation` follows the last user
    or observation message and opens the answer, `observation_generation` takes its place after an observation.
    observation_separator: between tool results in a row that share one observation slot; None gives each its own.
    assistant, function: the answer, from behind `generation` to its stop token and the text after it.
    system_style: `block` writes the system slot after the prefix, `merged` puts it in front of the first user text.
    tools: around the text of the tool format, which follows the system prompt. bare_tools: where there is none, the
    text loses the line breaks it begins with.
    text_end: the token behind plain pre-training text; empty for the tokenizer's end token.
    efficient_eos: answers carry no stop token inside a conversation; the model learns to stop all the same.
    replace_eos: the first stop word becomes the tokenizer's end token. replace_jinja_template: the chat template a
    tokenizer may bring is known to differ. reasoning: thoughts of earlier answers are dropped and
    answers without a thought get `empty_thought` (by default both thought words) in front of the assistant slot.
    """

    name: str
    user: Slot
    assistant: Slot
    system: Slot = (CONTENT,)
    observation: Slot | None = None
    observation_separator: Slot | None = None
    function: Slot | None = None
    prefix: Slot = ()
    generation: Slot = ()
    observation_generation: Slot | None = None
    system_style: Literal["block", "merged"] = "block"
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    thought_words: tuple[str, str] = THINK
    tool_call_words: tuple[str, str] = ("<tool_call>", "</tool_call>")
    tool_format: str = "default"
    tools: Slot = (CONTENT,)
    bare_tools: bool = False
    text_end: str = ""
    efficient_eos: bool = False
    replace_eos: bool = False
    replace_jinja_template: bool = False
    reasoning: bool = False
    empty_thought: str | None = None
    media: MediaTokens = MediaTokens()

    def __post_init__(self) -> None:
        for name in ("user", "assistant", "system", "observation", "function", "tools"):
            slot = getattr(self, name)
            if slot is not None and slot.count(CONTENT) != 1:
                raise ValueError(f"template {self.name}: the slot {name} must hold CONTENT once, got {slot!r}")
        for name in ("prefix", "generation", "observation_generation"):
            if CONTENT in (getattr(self, name) or ()):
                raise ValueError(f"template {self.name}: the slot {name} cannot hold CONTENT")

    @property
    def no_thought(self) -> str:
        """The text of a thought that is empty."""
        return "".join(self.thought_words) if self.empty_thought is None else self.empty_thought


@functools.cache
def templates() -> Mapping[str, Template]:
    """All templates by name, gathered from `TEMPLATES` of every file in `rendering/templates`."""
    package = importlib.import_module("llamafactory.rendering.templates")
    found: dict[str, Template] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for template in module.TEMPLATES:
            if template.name in found:
                raise ValueError(f"template {template.name!r} is defined twice, the second time in {module.__file__}")
            found[template.name] = template
    return MappingProxyType(dict(sorted(found.items())))


def get_template(name: str) -> Template:
    """The template called `name`. Raises ConfigError with the nearest name when there is none."""
    known = templates()
    if name not in known:
        raise ConfigError(
            f"template: {name!r} is not a known chat template{did_you_mean(name, known)}; choose one of the "
            f"{len(known)} listed by `llamafactory-cli template show`, or leave the key out to use the tokenizer's own"
        )
    return known[name]
