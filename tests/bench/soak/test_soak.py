"""What a soak takes for a fault, and a short one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from bench.soak.client import Outcome, Soaker
from bench.soak.requests import OK, Manner, Shooter, Shot
from bench.soak.server import Log
from sandwich.cli import main

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Aim = Callable[[Handler], Awaitable[Soaker]]
SHOT = Shot("good", "POST", "/", b"{}", OK)


@pytest.fixture
async def aim() -> AsyncIterator[Aim]:
    """A client of a server with that one handler."""
    runners: list[web.ServerRunner] = []
    session = aiohttp.ClientSession()

    async def aim(handler: Handler) -> Soaker:
        server = web.Server(handler)  # type: ignore[arg-type]
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return Soaker(session, f"http://{host}:{port}", patience_s=0.2)

    yield aim
    await session.close()
    for runner in runners:
        await runner.cleanup()


def stream(*pieces: bytes, cut: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        return response

    return handler


def plain(status: int, text: str = "", **headers: str) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, headers=headers)

    return handler


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize(
    ("handler", "what", "fault"),
    [
        (plain(200), "answered", ""),
        (plain(429, **{"Retry-After": "1"}), "full", ""),
        (plain(429), "full", "without Retry-After"),
        (plain(500, "oh"), "wrong status", "status 500: b'oh'"),
        (plain(503), "wrong status", "status 503"),
        (plain(400), "wrong status", "status 400"),
        (never, "hung", "no end of the answer"),
        (stream(b"data: {}\n\n", b"data: [DONE]\n\n"), "answered", ""),
        (stream(b"event: message_stop\ndata: {}\n\n"), "answered", ""),
        (stream(b"data: {}\n\n"), "cut stream", "has no end"),
        (stream(b'data: {"error":{}}\n\n', b"data: [DONE]\n\n"), "failed stream", "with an error"),
        (stream(b"data: {}\n\n", cut=True), "connection lost", "connection lost"),
    ],
)
async def test_what_an_answer_is_taken_for(
    aim: Aim, handler: Handler, what: str, fault: str
) -> None:
    outcome = await (await aim(handler)).send(SHOT)
    assert outcome.what == what
    assert fault in outcome.fault
    assert bool(outcome.fault) == bool(fault)


@pytest.mark.parametrize(
    ("handler", "what"),
    [
        (plain(503), "no server"),
        (stream(b'data: {"error":{"message":"the server shut down"}}\n\n'), "cut off"),
        (stream(b"data: {}\n\n", cut=True), "no server"),
    ],
)
async def test_a_server_that_was_told_to_end_may_refuse(
    aim: Aim, handler: Handler, what: str
) -> None:
    soaker = await aim(handler)
    soaker.is_stopping = True
    assert await soaker.send(SHOT) == Outcome(what)


@pytest.mark.parametrize("manner", [Manner.LEAVES, Manner.LEAVES_AMID, Manner.HALF_A_BODY])
async def test_whoever_leaves_looks_at_nothing(aim: Aim, manner: Manner) -> None:
    soaker = await aim(stream(b'data: {"error":{}}\n\n'))
    assert await soaker.send(Shot("x", "POST", "/", b"{}", OK, manner)) == Outcome("left")


def test_requests_are_of_all_kinds_and_the_same_for_a_seed() -> None:
    shots = [shooter.shot() for shooter in [Shooter(1, 64, has_chats=True)] for _ in range(400)]
    again = Shooter(1, 64, has_chats=True)
    assert [again.shot() for _ in range(400)] == shots
    assert {shot.manner for shot in shots} == set(Manner)
    assert len({shot.kind for shot in shots}) == 13


def test_errors_and_lines_that_are_no_json_are_faults() -> None:
    log = Log()
    lines = [
        {"level": "info", "message": "up", "logger": "sandwich"},
        {"level": "error", "message": "bad", "logger": "asyncio", "exception": "Trace"},
        {"level": "info", "message": "GET", "logger": "sandwich.access", "status": 200},
        {"level": "info", "message": "GET", "logger": "sandwich.access", "status": 500},
    ]
    for line in [*map(json.dumps, lines), "", "Traceback (most recent call last):"]:
        log.take(line + "\n")
    assert log.num_requests == 2
    assert log.faults[0] == "bad\nTrace"
    assert log.faults[1].startswith("status 500")
    assert log.faults[2:] == ["Traceback (most recent call last):"]


@pytest.mark.slow
def test_a_short_soak_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "soak", "--executor", "null", "--seconds", "20", "--clients", "8"]
    assert main(argv) == 0, capsys.readouterr().err
    assert " 0 faults" in capsys.readouterr().err
