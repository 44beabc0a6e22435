"""Every failure as the OpenAI error object, with its status: the one place that maps them.

Knows the typed errors of `sandwich.errors` and what aiohttp raises; knows no endpoint. A bug is
logged with its traceback and answered with a request id, never with its text.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from sandwich.errors import InvalidRequestError, QueueFullError, SandwichError, UnavailableError

logger = logging.getLogger("sandwich.server")

REQUEST_ID = web.RequestKey("request_id", str)
REQUEST_ID_HEADER = "X-Request-Id"
INVALID_REQUEST = "invalid_request_error"
ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
CLIENT_LEFT = 499  # as nginx logs it; nobody reads it

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ModelNotFoundError(InvalidRequestError):
    """The request names a model that this server does not serve (404)."""

    def __init__(self, model: str, served: str) -> None:
        super().__init__(
            f"the model `{model[:200]}` does not exist here; this server serves `{served}`",
            param="model",
            code="model_not_found",
        )


class AuthenticationError(SandwichError):
    """No API key, or a wrong one (401)."""


class RequestFailedError(SandwichError):
    """The engine ended a request with an error (500)."""


class BodyTooLargeError(SandwichError):
    """The body is over the limit (413). `nbytes` is None if the client did not announce it."""

    def __init__(self, limit: int, nbytes: int | None = None) -> None:
        what = "the body" if nbytes is None else f"the body of {nbytes} bytes"
        super().__init__(
            f"{what} is larger than this server's limit of {limit} bytes; send less, or start the "
            "server with a larger --max-body-size"
        )


class BodyTimeoutError(SandwichError):
    """The client did not send its body in time (408)."""


class ErrorObject(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct):
    error: ErrorObject


class AnthropicErrorObject(msgspec.Struct):
    type: str
    message: str


class AnthropicError(msgspec.Struct):
    error: AnthropicErrorObject
    type: str = "error"


@dataclass(frozen=True)
class ApiError:
    """An error as the wire has it: a status, the OpenAI object and extra headers."""

    status: int
    error: ErrorObject
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, path: str) -> bytes:
        """The object as clients of the endpoint at `path` know it."""
        if not path.startswith(ANTHROPIC_PATH):
            return msgspec.json.encode(ErrorBody(self.error))
        kind = _ANTHROPIC_TYPES.get(self.status, INVALID_REQUEST)
        return msgspec.json.encode(AnthropicError(AnthropicErrorObject(kind, self.error.message)))

    def response(self, path: str) -> web.Response:
        return web.Response(
            status=self.status,
            body=self.body(path),
            headers=self.headers,
            content_type="application/json",
        )


def describe(error: BaseException, request_id: str) -> ApiError:
    """The wire form of `error`; what is neither typed nor aiohttp's is a bug and is logged."""
    message = str(error)
    match error:
        case ModelNotFoundError():
            return ApiError(404, ErrorObject(message, INVALID_REQUEST, error.param, error.code))
        case InvalidRequestError():
            return ApiError(400, ErrorObject(message, INVALID_REQUEST, error.param, error.code))
        case AuthenticationError():
            return ApiError(
                401,
                ErrorObject(message, "authentication_error", code="invalid_api_key"),
                {"WWW-Authenticate": "Bearer"},
            )
        case QueueFullError():
            return ApiError(
                429,
                ErrorObject(message, "overloaded_error", code="queue_full"),
                {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))},
            )
        case UnavailableError():
            return ApiError(503, ErrorObject(message, "unavailable_error", code="unavailable"))
        case BodyTooLargeError():
            return ApiError(413, ErrorObject(message, INVALID_REQUEST, code="request_too_large"))
        case BodyTimeoutError():
            return ApiError(408, ErrorObject(message, INVALID_REQUEST, code="request_timeout"))
        case RequestFailedError():
            return ApiError(500, ErrorObject(message, "server_error", code="request_failed"))
        case web.HTTPException():
            return _from_aiohttp(error)
    logger.error("request %s failed", request_id, exc_info=error)
    return ApiError(
        500,
        ErrorObject(
            f"internal error; the server's log has it under request {request_id}",
            "server_error",
            code="internal_error",
        ),
    )


def _from_aiohttp(error: web.HTTPException) -> ApiError:
    if isinstance(error, web.HTTPNotFound):
        message, code = "no such path; the endpoints are under /v1", "not_found"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        message, code = f"{error.method} is not allowed here; use {allowed}", "method_not_allowed"
    else:
        message, code = error.reason, f"http_{error.status}"
    kept = {name: value for name, value in error.headers.items() if name == "Allow"}
    return ApiError(error.status, ErrorObject(message, INVALID_REQUEST, code=code), kept)


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns what a handler raises into an error object. A client that left gets no answer."""
    try:
        return await handler(request)
    except ConnectionError:
        logger.debug("request %s: its client has left", request[REQUEST_ID])
        return web.Response(status=CLIENT_LEFT)
    except Exception as error:
        return describe(error, request[REQUEST_ID]).response(request.path)
