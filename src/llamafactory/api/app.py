"""The routes, and what stands before them. The only place that puts the parts of the server together.

Knows an engine that is there already; reads neither configurations nor the environment.
"""

from __future__ import annotations

import time
from typing import Literal

from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware

from llamafactory.api.answering import Work
from llamafactory.api.bodies import Body
from llamafactory.api.chat import ChatRoute
from llamafactory.api.completions import CompletionRoute
from llamafactory.api.conversation import ConversationReader
from llamafactory.api.errors import ApiError, install_handlers
from llamafactory.api.gate import Gate
from llamafactory.api.guard import OPEN_PATH, Guard
from llamafactory.api.media import Kind, MediaLoader
from llamafactory.api.metrics import CONTENT_TYPE, Measure, Metrics
from llamafactory.api.schema import ChatRequest, CompletionRequest, ScoreRequest
from llamafactory.api.scores import ScoreRoute
from llamafactory.api.settings import Settings
from llamafactory.inference.engine import Engine, GenerationOptions

Gives = Literal["answers", "scores"]
_DESCRIPTION = "Answers of one model in OpenAI's shape; errors are `{error: {message, type, param, code}}`."


def create_app(
    engine: Engine,
    settings: Settings,
    defaults: GenerationOptions,
    *,
    gives: Gives = "answers",
    kinds: frozenset[Kind] = frozenset(),
    loader: MediaLoader | None = None,
) -> FastAPI:
    """Build the server's app; its `state.work` ends running answers when told to.

    defaults: the options of answers where a request leaves them out. kinds: media the model understands.
    """
    gate = Gate(settings.limits.answers)
    metrics = Metrics(gate)
    work = Work(engine, gate, metrics, settings.limits.answer_seconds)
    app = FastAPI(title="llamafactory", description=_DESCRIPTION)
    app.state.work = work
    install_handlers(app)
    _add_reports(app, settings, metrics)
    reader = ConversationReader(
        loader or MediaLoader(settings),
        max_media=settings.limits.media,
        kinds=kinds,
        thought_words=engine.renderer.reasoning_words,
    )
    _add_answers(app, ChatRoute(work, reader, defaults, settings.limits), gives)
    _add_completions(app, CompletionRoute(work, defaults, settings.limits), gives)
    _add_scores(app, ScoreRoute(work, settings.limits), gives)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Measure, metrics=metrics, log=settings.log_requests)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],  # OpenAI's own client sends a dozen of its own; no credentials are allowed
        )
    return app


def _add_reports(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    model: Body = {"id": settings.model_name, "object": "model", "created": int(time.time()), "owned_by": "owner"}

    @app.get(OPEN_PATH)
    async def health() -> Body:
        """Whether the server is up; asks for no key."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def numbers() -> Response:
        """Counts and times for Prometheus."""
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/v1/models")
    async def models() -> Body:
        """The one model there is."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Body:
        """What is known of a model."""
        if name != settings.model_name:
            raise ApiError(404, f"model: {name!r} is not here, only {settings.model_name!r}", code="model_not_found")
        return model


def _add_answers(app: FastAPI, route: ChatRoute, gives: Gives) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a chat, whole or as server-sent events."""
        _need(gives, "answers")
        return await route.answer(body, request)


def _add_completions(app: FastAPI, route: CompletionRoute, gives: Gives) -> None:
    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue plain texts, whole or as server-sent events."""
        _need(gives, "answers")
        return await route.answer(body, request)


def _add_scores(app: FastAPI, route: ScoreRoute, gives: Gives) -> None:
    @app.post("/v1/score/evaluation")
    async def score_evaluation(body: ScoreRequest, request: Request) -> Response:
        """Score texts with a reward model."""
        _need(gives, "scores")
        return await route.answer(body, request)


def _need(gives: Gives, wanted: Gives) -> None:
    if gives != wanted:
        raise ApiError(405, f"Not allowed: this model gives {gives}, no {wanted}", code="not_allowed")
