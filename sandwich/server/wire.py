"""What every endpoint does with HTTP: find the service, read a body, write JSON."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import TypeVar

import msgspec
from aiohttp import web

from sandwich.errors import UnavailableError
from sandwich.server.errors import REQUEST_ID, BodyTimeoutError, BodyTooLargeError
from sandwich.server.parsing import parse_body
from sandwich.server.protocol import Body
from sandwich.server.service import Service
from sandwich.server.state import STATE

logger = logging.getLogger("sandwich.server")

BodyT = TypeVar("BodyT", bound=Body)


def service_of(request: web.Request) -> Service:
    """The service, or UnavailableError while there is none."""
    state = request.app[STATE]
    if state.service is None:
        share = f"{state.share_loaded:.0%} of the weights are there"
        raise UnavailableError(f"the model is still loading: {share}; try again later")
    return state.service


async def read_body(request: web.Request, body: type[BodyT]) -> BodyT:
    """The request's body as its type. Raises BodyTooLarge, BodyTimeout or InvalidRequestError."""
    limit = request.client_max_size
    if (request.content_length or 0) > limit:
        raise BodyTooLargeError(limit, request.content_length)
    timeout_s = request.app[STATE].limits.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLargeError(limit) from None
    except TimeoutError:
        raise BodyTimeoutError(f"the body did not arrive within {timeout_s:g} s") from None
    if request.app[STATE].config.log_prompts:
        text = raw.decode(errors="replace")
        fields = {"request_id": request[REQUEST_ID], "path": request.path, "body": text}
        logger.info("%s got %s", request.path, text, extra={"fields": fields})
    return parse_body(raw, body)


def json_response(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"
