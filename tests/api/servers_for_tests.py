"""A real server on loopback in a thread, and an engine that says what it is told to."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import FastAPI
from tests.conftest import make_tokenizer

from llamafactory.api.app import create_app
from llamafactory.api.server import build_server
from llamafactory.api.settings import Settings
from llamafactory.config.sections.template import TemplateConfig
from llamafactory.errors import ModelError
from llamafactory.inference.engine import Delta, Engine, EngineFailure, GenerationOptions, TokenLogprob
from llamafactory.rendering.records import Conversation
from llamafactory.rendering.renderer import Renderer, build_renderer

DEFAULTS = GenerationOptions(do_sample=False, max_new_tokens=16)


def make_renderer(template: str = "chatml", **options: object) -> Renderer:
    return build_renderer(make_tokenizer(), TemplateConfig(template=template, **options))


@dataclass
class ScriptedEngine:
    """Answers a prompt with the text `script` holds for its last message, else with the message itself.

    `slow` gives a word every 20 ms for ten minutes, `stuck` never gives one, `too long`, `dead` and `broken` raise.
    """

    renderer: Renderer = field(default_factory=make_renderer)
    script: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    asked: list[tuple[Conversation | str, GenerationOptions]] = field(default_factory=list)
    running: int = 0
    closed: bool = False

    async def generate(self, prompt: Conversation | str, options: GenerationOptions) -> AsyncGenerator[Delta, None]:
        self.asked.append((prompt, options))
        last = prompt if isinstance(prompt, str) else prompt.messages[-1].content
        if isinstance(prompt, Conversation):
            self.renderer.prompt_ids(prompt)
        if last == "too long":
            raise ModelError("The prompt has 900 tokens and leaves no room for an answer; shorten it")
        if last == "dead":
            raise EngineFailure("the engine was closed before the answer was complete")
        if last == "broken":
            raise ValueError("a secret of the server")
        self.running += 1
        try:
            if last == "stuck":
                await asyncio.sleep(600)
            pieces = ["word "] * 30000 if last == "slow" else re.findall(r".{1,3}", self.script.get(last, last), re.S)
            for number, text in enumerate(pieces, start=1):
                token = TokenLogprob(number, text, -0.5, ((text, -0.5), ("other", float("-inf"))))
                logprobs = () if options.top_logprobs is None else (token,)
                yield Delta(text, None, 7, number, logprobs)
                await asyncio.sleep(0.02 if last == "slow" else 0)
            yield Delta("", self.finish, 7, len(pieces) + 1)  # type: ignore[arg-type]
        finally:
            self.running -= 1

    async def score(self, texts: Sequence[str], *, max_length: int | None = None) -> list[float]:
        return [float(len(text)) for text in texts]

    async def close(self) -> None:
        self.closed = True


@dataclass
class Served:
    url: str
    app: FastAPI
    engine: Engine
    stop: Callable[[], None]


@contextmanager
def serving(engine: Engine, settings: Settings | None = None, **parts: object) -> Iterator[Served]:
    """Serve `engine` on a free port of loopback until the block ends."""
    settings = settings or Settings()
    app = create_app(engine, settings, DEFAULTS, **parts)  # type: ignore[arg-type]
    server = build_server(app, settings)
    with socket.socket(proto=socket.IPPROTO_TCP) as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([sock])), daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the server did not start"

        def stop() -> None:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

        yield Served(url, app, engine, stop)
        stop()
