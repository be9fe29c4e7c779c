"""An engine with a template and without a model, which calls a tool; apart because templates load slowly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from tests.conftest import make_tokenizer
from tests.inference.engines_for_tests import EchoEngine

from llamafactory.config.sections.template import TemplateConfig
from llamafactory.inference.engine import Delta, GenerationOptions
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.renderer import build_renderer

CALL = '<think>\nI need a sum.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class CallingEngine(EchoEngine):
    """Calls a tool when asked `sum`, else echoes; renders as Qwen3 does."""

    def __init__(self) -> None:
        super().__init__()
        self.renderer = build_renderer(make_tokenizer(), TemplateConfig(template="qwen3"))
        self.asked: list[Conversation] = []
        self.options: list[GenerationOptions] = []

    async def generate(self, conversation: Conversation, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        self.asked.append(conversation)
        self.options.append(options)
        if conversation.messages[-1].content != "sum":
            async for delta in super().generate(conversation, options):
                yield delta
            return
        for place in range(0, len(CALL), 7):
            yield Delta(CALL[place : place + 7])
            await asyncio.sleep(0)
        yield Delta("", "stop")
