"""Numbers about the server in Prometheus' format: requests, answers, tokens, times.

Knows what is counted, not who counts.
"""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llamafactory.api.gate import Gate
from llamafactory.logs import get_logger

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_UNKNOWN_ROUTE = "other"

logger = get_logger(__name__)


class Metrics:
    """All numbers of one server."""

    def __init__(self, gate: Gate) -> None:
        self._registry = registry = CollectorRegistry()
        prefix = "llamafactory"
        self.requests = Counter(
            f"{prefix}_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            f"{prefix}_request_seconds", "Seconds of whole requests.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.prompt_tokens = Counter(f"{prefix}_prompt_tokens", "Tokens of answered prompts.", registry=registry)
        self.completion_tokens = Counter(f"{prefix}_completion_tokens", "Tokens of answers.", registry=registry)
        self.first_token = Histogram(
            f"{prefix}_first_token_seconds", "Seconds to the first token.", buckets=_SECONDS, registry=registry
        )
        running = Gauge(f"{prefix}_answers_running", "Answers that have given a token.", registry=registry)
        waiting = Gauge(f"{prefix}_answers_waiting", "Answers that have not.", registry=registry)
        running.set_function(lambda: gate.running)
        waiting.set_function(lambda: gate.waiting)

    def text(self) -> bytes:
        """All numbers as Prometheus reads them."""
        return generate_latest(self._registry)


class Measure:
    """Counts every request, refused ones too. log: write a line for each, without what was said."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 499

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = time.monotonic() - start
            route = getattr(scope.get("route"), "path", _UNKNOWN_ROUTE)
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._log:
                logger.info("%s %s %d %.3f s", scope["method"], route, status, seconds)
