"""The control tokens a template is written with, told from the spelling of its slots. Knows no tokenizer.

A tokenizer that lacks them would read them as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llamafactory.rendering.template import Slot, Template, Token

_TOKEN = re.compile(r"<<?/?[^<>\s=]+>>?|\[/?[A-Z][A-Za-z_]+\]|\[\|[a-z]+\|\]|\[gMASK\]|\[e~\[|\]~!?b[\[\]]|◁/?[a-z_]+▷")


def control_tokens(template: Template) -> tuple[str, ...]:
    """All of them, those of tools and thoughts too: for tokenizers made to test the template."""
    more = (
        template.observation, template.function, template.tools, template.observation_generation,
        template.tool_call_words, template.thought_words if template.reasoning else (),
    )  # fmt: skip
    return tuple(dict.fromkeys((*turn_tokens(template), *_tokens_of(more))))


def turn_tokens(template: Template) -> tuple[str, ...]:
    """Those around system prompts, user messages and answers, and the stop words.

    A stop word of ordinary characters, like `###`, is none: the template makes it one.
    """
    stops = (word for word in template.stop_words if _TOKEN.fullmatch(word))
    slots = (template.prefix, template.system, template.user, template.generation, template.assistant)
    return tuple(dict.fromkeys((*stops, *_tokens_of(slots))))


def _tokens_of(slots: Iterable[Slot | None]) -> Iterable[str]:
    for slot in slots:
        for part in slot or ():
            if isinstance(part, Token):
                yield part.text
            elif isinstance(part, str):
                yield from _TOKEN.findall(part)
