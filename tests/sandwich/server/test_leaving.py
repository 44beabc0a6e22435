"""Clients that leave: their requests end at once, wherever they are, and give everything back."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from codegen.spec import Phase
from sandwich.server.server_limits import ServerLimits
from tests.sandwich.server.conftest import LIMITS, MODEL, PATIENCE_S, Rig, StartRig

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": [1] * 100},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x" * 82}]},
}
NUM_PREFILL_STEPS = 7  # 100 or 101 tokens, 16 at a time

Leave = Callable[[], Coroutine[Any, Any, None]]


async def send(rig: Rig, path: str, **fields: Any) -> Leave:
    """Send a request that is not waited for; the result makes its client leave."""
    session = aiohttp.ClientSession()
    body = ENDPOINTS[path] | fields
    call = asyncio.create_task(session.post(rig.url + path, json=body))
    await rig.submitted()

    async def leave() -> None:
        call.cancel()
        for response in await asyncio.gather(call, return_exceptions=True):
            if isinstance(response, aiohttp.ClientResponse):
                response.close()
        await session.close()
        await asyncio.wait_for(rig.bridge.wait_until_empty(), PATIENCE_S)

    return leave


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_leaving_in_prefill_ends_it(rig: Rig, path: str, is_streamed: bool) -> None:
    rig.executor.hold()
    leave = await send(rig, path, stream=is_streamed)
    rig.executor.allow(2)
    await rig.executor.entered(3)
    await leave()
    rig.executor.allow()
    await rig.check_nothing_is_left()
    prefills = [batch for batch in rig.executor.batches if batch.phase is Phase.PREFILL]
    assert len(prefills) == 3 + 1  # the last one is of the request that looks


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_leaving_in_decode_ends_it(rig: Rig, path: str, is_streamed: bool) -> None:
    rig.executor.hold()
    leave = await send(rig, path, stream=is_streamed, max_tokens=100)
    rig.executor.allow(NUM_PREFILL_STEPS + 4)
    await rig.executor.entered(NUM_PREFILL_STEPS + 5)
    assert rig.engine.stats.num_generated_tokens == 5
    await leave()
    rig.executor.allow()
    await rig.check_nothing_is_left()
    assert len(rig.executor.batches) == NUM_PREFILL_STEPS + 5 + 1


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_leaving_while_queued_in_the_scheduler_ends_it(start: StartRig, path: str) -> None:
    rig = await start(limits=replace(LIMITS, max_num_seqs=1))
    rig.executor.hold()
    running = asyncio.create_task(
        rig.client.completions.create(model=MODEL, prompt="run", max_tokens=5)
    )
    await rig.submitted()
    await rig.executor.entered(1)
    queued = await asyncio.gather(*(send(rig, path) for _ in range(3)))
    rig.executor.allow(1)
    await rig.executor.entered(2)
    assert rig.engine.stats.num_waiting == 3
    leaving = [asyncio.create_task(leave()) for leave in queued]
    rig.executor.allow()
    assert (await running).choices[0].text == "45678"
    await asyncio.gather(*leaving)
    await rig.check_nothing_is_left()


async def test_leaving_before_the_engine_looked_is_as_if_nothing_came(rig: Rig) -> None:
    rig.executor.hold()
    first = await send(rig, "/v1/completions", max_tokens=1)
    await rig.executor.entered(1)
    second = await send(rig, "/v1/completions")
    call = asyncio.create_task(second())
    await first()
    await call
    rig.executor.allow()
    await rig.check_nothing_is_left()
    assert rig.engine.stats.num_finished == {"abort": 1, "length": 1}


async def test_all_choices_of_a_client_that_leaves_end(rig: Rig) -> None:
    rig.executor.hold()
    leave = await send(rig, "/v1/completions", prompt=["a", "b", "c"], n=4)
    await rig.executor.entered(1)
    await leave()
    rig.executor.allow()
    await rig.check_nothing_is_left()
    assert rig.engine.stats.num_finished["abort"] == 12


async def test_closing_openais_stream_early_ends_the_request(rig: Rig) -> None:
    rig.executor.hold()
    rig.executor.allow(NUM_PREFILL_STEPS + 2)
    stream = await rig.client.completions.create(
        model=MODEL, prompt=[1] * 100, max_tokens=100, stream=True
    )
    first = await anext(aiter(stream))
    assert first.choices[0].text == "0"
    await stream.close()
    await asyncio.wait_for(rig.bridge.wait_until_empty(), PATIENCE_S)
    rig.executor.allow()
    await rig.check_nothing_is_left()
    assert rig.engine.stats.num_generated_tokens <= 2 + 2 + 1


def server_records(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server's own loggers and aiohttp's said above debug."""
    return [
        f"{record.levelname} {record.getMessage()}"
        for record in caplog.records
        if record.name.startswith(("sandwich", "aiohttp")) and record.levelno > logging.DEBUG
        if record.name != "sandwich.access"
    ]


@pytest.mark.parametrize("path", ENDPOINTS)
async def test_leaving_a_stream_is_no_error(
    rig: Rig, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's window closes with a reset, so that the next write of the server fails."""
    caplog.set_level(logging.DEBUG)
    rig.executor.hold()
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(ENDPOINTS[path] | {"max_tokens": 100, "stream": True}).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % (path.encode(), len(body)) + body)
    await rig.submitted()
    await reader.readline()  # the status is out
    # Its handler is not cancelled, as when the loss is noticed by a write and not by a read.
    [connection] = rig.server._runner.server.connections  # type: ignore[union-attr]
    connection.transport.abort()  # type: ignore[union-attr]
    rig.executor.allow()
    await rig.left()
    writer.close()
    await rig.check_nothing_is_left()
    assert server_records(caplog) == []


async def test_a_failed_write_is_one_line_of_debugging(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write = aiohttp.web.StreamResponse.write

    async def break_off(self: aiohttp.web.StreamResponse, data: Any) -> None:
        await write(self, data)
        self._req.transport.abort()  # type: ignore[union-attr]
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(aiohttp.web.StreamResponse, "write", break_off)
    body = {"prompt": "x", "max_tokens": 9, "stream": True}
    response = await rig.http.post(rig.url + "/v1/completions", json=body)
    with pytest.raises(aiohttp.ClientError):
        await response.read()
    monkeypatch.undo()
    await rig.check_nothing_is_left()
    assert server_records(caplog) == []
    [line] = [r for r in caplog.records if "its client has left" in r.getMessage()]
    assert line.levelno == logging.DEBUG


async def test_leaving_while_the_body_comes_is_no_error(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = rig.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"prompt":')
    await writer.drain()
    writer.transport.abort()
    await rig.check_nothing_is_left()
    assert server_records(caplog) == []


async def test_a_client_that_reads_nothing_is_cut_off(start: StartRig) -> None:
    """Its window is full, its connection alive: without a limit the handler would wait for ever."""
    rig = await start(
        limits=replace(LIMITS, max_model_len=20_000, num_blocks=2500),
        server_limits=ServerLimits(write_timeout_s=0.01),
    )
    [site] = rig.server._runner.sites
    for listening in site._server.sockets:  # type: ignore[union-attr]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    host, port = rig.url.removeprefix("http://").split(":")
    await asyncio.get_running_loop().sock_connect(client, (host, int(port)))
    _, writer = await asyncio.open_connection(sock=client, limit=1)
    body = b'{"prompt": "x", "max_tokens": 19000, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    writer.write(head + body)
    await rig.submitted()
    await asyncio.wait_for(rig.bridge.wait_until_empty(), PATIENCE_S)
    assert rig.engine.stats.num_generated_tokens < 19_000
    writer.close()
    await rig.check_nothing_is_left()
