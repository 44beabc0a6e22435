"""Server-sent events: the frames of a streamed answer and the care for the client's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol, cast

import msgspec
from aiohttp import web

from sandwich.server.errors import ApiError

KEEP_ALIVE = b":\n\n"
DONE = b"data: [DONE]\n\n"
_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the events back
}


def frame(payload: bytes) -> bytes:
    """One event. JSON never holds a raw newline, so one `data:` line is enough."""
    return b"data: " + payload + b"\n\n"


class NamedEvent(Protocol):
    """A payload whose type is the name of its event."""

    type: str


class EventStream:
    """The answer of one streaming request. Any write raises ConnectionError once the client left.

    A client that stays connected but reads nothing for `write_timeout_s` is taken for gone: the
    connection is cut, so that no handler waits for ever.
    """

    def __init__(
        self, request: web.Request, write_timeout_s: float, has_names: bool = False
    ) -> None:
        """`has_names`: payloads are NamedEvents, and the last one ends the stream."""
        self._request = request
        self._has_names = has_names
        self._response = web.StreamResponse(headers=_HEADERS)
        self._write_timeout_s = write_timeout_s

    async def open(self) -> None:
        await self._response.prepare(self._request)

    async def send(self, payloads: Iterable[msgspec.Struct]) -> None:
        """Write the events in one go; nothing if there are none."""
        data = b"".join(self._event(payload) for payload in payloads)
        if data:
            await self._write(data)

    def _event(self, payload: msgspec.Struct) -> bytes:
        data = frame(msgspec.json.encode(payload))
        if not self._has_names:
            return data
        return b"event: " + cast(NamedEvent, payload).type.encode() + b"\n" + data

    async def send_error(self, error: ApiError) -> None:
        name = b"event: error\n" if self._has_names else b""
        await self._write(name + frame(error.body(self._request.path)))

    async def keep_alive(self) -> None:
        """A comment: clients skip it, proxies and dead connections notice it."""
        await self._write(KEEP_ALIVE)

    async def close(self) -> web.StreamResponse:
        if not self._has_names:
            await self._write(DONE)
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._response.write(data)
        except TimeoutError:
            transport = self._request.transport
            if transport is not None:
                transport.abort()
            raise ConnectionResetError(
                f"the client read nothing for {self._write_timeout_s} s"
            ) from None
