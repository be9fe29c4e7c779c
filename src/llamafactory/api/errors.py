"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`, whatever went wrong.

Knows HTTP and our own errors, no model.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from llamafactory.errors import LlamaFactoryError
from llamafactory.inference.engine import EngineFailure
from llamafactory.logs import get_logger

logger = get_logger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_MAX_FACTS = 3


class ApiError(HTTPException):
    """An answer that is an error. param: the field of the request at fault. code: a word programs can compare."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_seconds: int = 0
    ) -> None:
        headers = {"Retry-After": str(retry_seconds)} if retry_seconds else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.param = param
        self.code = code


class ClientGone(Exception):
    """Nobody is there to answer any more."""


def error_body(error: ApiError) -> dict[str, object]:
    """The body of an error's answer."""
    kind = _TYPES.get(error.status_code, "invalid_request_error" if error.status_code < 500 else "server_error")
    return {"error": {"message": error.detail, "type": kind, "param": error.param, "code": error.code}}


def to_response(error: ApiError) -> JSONResponse:
    """An error as an answer."""
    return JSONResponse(error_body(error), error.status_code, dict(error.headers or {}))


def to_api_error(error: Exception) -> ApiError:
    """What the client is told about an error while its answer is made; our own bugs are logged and not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineFailure):
        return ApiError(503, str(error), code="engine_failure", retry_seconds=1)
    if isinstance(error, LlamaFactoryError):
        return ApiError(400, str(error), code=_code(str(error)))
    logger.error("the server failed to answer a request", exc_info=error)
    return ApiError(500, "The server failed to answer; its log says why", code="internal_error")


def _code(message: str) -> str | None:
    return "context_length_exceeded" if "leaves no room for an answer" in message else None


def install_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in one shape."""

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if isinstance(error, ApiError):
            return to_response(error)
        where = f"{request.method} {request.url.path}"
        message = f"{where}: {error.detail}; GET /openapi.json lists what there is"
        if error.status_code == 400:
            message = f"{where}: the body is not JSON that can be read"
        found = ApiError(error.status_code, message)
        response = to_response(found)
        response.headers.update(error.headers or {})
        return response

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return to_response(_from_validation(error))

    async def on_other(request: Request, error: Exception) -> Response:
        return to_response(to_api_error(error))

    async def on_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(ClientGone, on_gone)
    app.add_exception_handler(LlamaFactoryError, on_other)
    app.add_exception_handler(Exception, on_other)


def _from_validation(error: RequestValidationError) -> ApiError:
    """The first facts of what pydantic found, without the values that were sent."""
    found = error.errors()
    facts = [_fact(item) for item in found[:_MAX_FACTS]]
    more = f" (and {len(found) - _MAX_FACTS} more)" if len(found) > _MAX_FACTS else ""
    code = "unknown_parameter" if found and found[0]["type"] == "extra_forbidden" else "invalid_value"
    return ApiError(400, "; ".join(facts) + more, param=_place(found[0]) if found else None, code=code)


def _place(item: Mapping[str, object]) -> str:
    location = item["loc"]
    assert isinstance(location, tuple)
    return ".".join(str(part) for part in location if part != "body") or "body"


def _fact(item: Mapping[str, object]) -> str:
    place = _place(item)
    if item["type"] == "extra_forbidden":
        return f"{place}: this server knows no such field; leave it out"
    if item["type"] == "json_invalid":
        return "body: it is not JSON that can be read"
    return f"{place}: {item['msg']}"
