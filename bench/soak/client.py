"""Sends one random request in its manner and says what became of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp

from bench.soak.requests import Manner, Shot

FULL = 429
LEAVING = 503
_LAST_EVENTS = (b"data: [DONE]\n\n", b"message_stop", b"response.completed", b"response.incomplete")
_ERROR = b'"error":{'
_SHUT_DOWN = b"shut down"


@dataclass(frozen=True)
class Outcome:
    """`what` is a word for the table; `fault` is what should not have happened, else empty."""

    what: str
    fault: str = ""


class Soaker:
    """A client of one server. `patience_s`: what lasts longer hangs."""

    def __init__(self, http: aiohttp.ClientSession, url: str, patience_s: float) -> None:
        self._http = http
        self._url = url
        self._patience_s = patience_s
        self.is_stopping = False  # the server was told to end: it may refuse and cut off

    async def send(self, shot: Shot) -> Outcome:
        try:
            async with asyncio.timeout(self._patience_s):
                if shot.manner is Manner.HALF_A_BODY:
                    return await self._half(shot)
                return await self._whole(shot)
        except TimeoutError:
            return Outcome("hung", f"no end of the answer after {self._patience_s:g} s")
        except (aiohttp.ClientError, ConnectionError) as error:
            if self.is_stopping:
                return Outcome("no server")
            return Outcome("connection lost", f"connection lost: {error!r}")

    async def _half(self, shot: Shot) -> Outcome:
        host, port = self._url.removeprefix("http://").rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        length = len(shot.body) + 10
        head = f"{shot.method} {shot.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        writer.write(head.encode() + shot.body)
        await writer.drain()
        writer.close()
        return Outcome("left")

    async def _whole(self, shot: Shot) -> Outcome:
        response = await self._http.request(
            shot.method, self._url + shot.path, data=shot.body or None
        )
        try:
            if shot.manner is Manner.LEAVES:
                return Outcome("left")
            if response.status == FULL:
                has_word = "Retry-After" in response.headers
                return Outcome("full", "" if has_word else "429 without Retry-After")
            if response.status == LEAVING and self.is_stopping:
                return Outcome("no server")
            if response.status not in shot.statuses:
                text = (await response.read())[:300]
                return Outcome("wrong status", f"status {response.status}: {text!r}")
            return await self._read(shot, response)
        finally:
            response.close()

    async def _read(self, shot: Shot, response: aiohttp.ClientResponse) -> Outcome:
        is_stream = response.content_type == "text/event-stream"
        data = b""
        async for piece in response.content.iter_chunked(
            64 if shot.manner is Manner.SLOW else 4096
        ):
            data += piece
            if shot.manner is Manner.LEAVES_AMID:
                return Outcome("left")
            if shot.manner is Manner.SLOW:
                await asyncio.sleep(0.002)
        if not is_stream:
            return Outcome("answered" if response.status == 200 else "refused")
        if _ERROR in data:
            if self.is_stopping and _SHUT_DOWN in data:
                return Outcome("cut off")
            return Outcome("failed stream", f"a stream ended with an error: {data[-300:]!r}")
        if not any(end in data for end in _LAST_EVENTS):
            return Outcome("cut stream", f"a stream has no end: {data[-300:]!r}")
        return Outcome("answered")
