"""POST /v1/score/evaluation: what a reward model thinks of texts.

Knows no templates: texts are scored as they are.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from llamafactory.api.answering import Work
from llamafactory.api.bodies import new_id
from llamafactory.api.completions import check_texts
from llamafactory.api.schema import ScoreRequest
from llamafactory.api.settings import Limits


class ScoreRoute:
    """Scores texts with one engine."""

    def __init__(self, work: Work, limits: Limits) -> None:
        self._work = work
        self._limits = limits

    async def answer(self, body: ScoreRequest, request: Request) -> Response:
        """Answer one request."""
        check_texts(body.messages, "messages", self._limits)
        scores = await self._work.while_wanted(self._scores(body), request.receive)
        return JSONResponse(
            {"id": new_id("scoreval-"), "object": "score.evaluation", "model": body.model, "scores": scores}
        )

    async def _scores(self, body: ScoreRequest) -> list[float]:
        with self._work.gate.enter(1):
            return await self._work.engine.score(body.messages, max_length=body.max_length)
