"""Runs a file of requests through the very handlers that answer HTTP, over a socket of its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from sandwich.batch_file import BatchOutput, BatchRequest
from sandwich.config import ServerConfig
from sandwich.errors import UnavailableError
from sandwich.server.app import Server
from sandwich.server.backend import Backend
from sandwich.server.errors import REQUEST_ID_HEADER
from sandwich.server.wire import new_id

URLS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_BUSY, _UNAVAILABLE = 429, 503
_LONGEST_WAIT_S: Final = 5.0  # until a request that found no place is sent again
_NO_LIMIT: Final = aiohttp.ClientTimeout(total=None)


class BatchResponse(msgspec.Struct):
    status_code: int
    request_id: str
    body: Any


class BatchEntry(msgspec.Struct, kw_only=True):
    """One line of the output."""

    id: str
    custom_id: str
    response: BatchResponse
    error: None = None


@dataclass
class Counts:
    num_answered: int = 0
    num_refused: int = 0  # of those, the ones with a status that is no success


async def run_batch(
    backend: Backend,
    requests: Iterable[BatchRequest],
    output: BatchOutput,
    on_answer: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Answer what is not done yet, as many at once as there are places; ends the engine.

    Raises UnavailableError if the engine fails on the way: what has no line by then is still to be
    done. Raises ConfigError if the output cannot be written.
    """
    counts = Counts()
    pending = iter(request for request in requests if request.custom_id not in output.done)
    server = Server(ServerConfig(api_key=None))  # also where the environment has one
    with tempfile.TemporaryDirectory(prefix="sandwich-") as folder:  # nobody else may enter it
        socket = Path(folder) / "socket"
        await server.start(socket)
        server.ready(backend)
        connector = aiohttp.UnixConnector(str(socket), limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=_NO_LIMIT) as session:

            async def work() -> None:
                for request in pending:
                    entry = await _answer(session, request)
                    output.write(entry)
                    counts.num_answered += 1
                    counts.num_refused += entry.response.status_code >= 400
                    on_answer(counts)

            limits = backend.engine.limits
            num_workers = min(2 * limits.max_num_seqs, limits.max_num_seqs + 16)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(num_workers):
                        group.create_task(work())
            except* UnavailableError as errors:
                raise errors.exceptions[0] from None
            finally:
                await server.stop()
    return counts


async def _answer(session: aiohttp.ClientSession, request: BatchRequest) -> BatchEntry:
    """The answer, whenever there is room for the request."""
    wait_s = 0.05
    while True:
        async with session.post(f"http://batch{request.url}", json=request.body) as response:
            body = await response.json()
            request_id = response.headers[REQUEST_ID_HEADER]
            if response.status == _UNAVAILABLE:
                raise UnavailableError(f"{body['error']['message']}; start again to go on")
        if response.status != _BUSY:
            answer = BatchResponse(response.status, request_id, body)
            return BatchEntry(id=new_id("batch_req"), custom_id=request.custom_id, response=answer)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
