"""Full, loading, draining, stopped, dead: what the server answers then, and that nobody waits."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import aiohttp
import openai
import pytest

from sandwich.config import ServerConfig
from sandwich.engine.engine import Engine
from sandwich.errors import ConfigError, ModelError
from sandwich.server.app import Server, _serve
from sandwich.server.backend import Backend
from tests.sandwich.server.conftest import (
    LIMITS,
    MODEL,
    PATIENCE_S,
    GatedExecutor,
    Rig,
    Setup,
    StartRig,
)

BackendOf = Callable[[Setup, Engine], Backend]


def ask(rig: Rig, **fields: Any) -> asyncio.Task[Any]:
    call: Any = {"model": MODEL, "prompt": "hello", "max_tokens": 3} | fields
    return asyncio.create_task(rig.client.completions.create(**call))


async def busy(start: StartRig, **changes: Any) -> tuple[Rig, asyncio.Task[Any]]:
    """A server of one seat whose request hangs at the gate."""
    rig = await start(limits=replace(LIMITS, max_num_seqs=1), **changes)
    rig.executor.hold()
    call = ask(rig)
    await rig.submitted()
    await rig.executor.entered(1)
    return rig, call


# ---- full ----


async def test_a_full_queue_answers_429_at_once_and_says_when_to_come_back(
    start: StartRig,
) -> None:
    rig, running = await busy(start, max_num_queued_reqs=2)
    queued = [ask(rig), ask(rig)]
    await rig.submitted(2)
    with pytest.raises(openai.RateLimitError) as caught:
        await ask(rig)
    assert 1 <= int(caught.value.response.headers["Retry-After"]) <= 60
    assert caught.value.code == "queue_full"
    assert "3 of 3" in caught.value.message
    rig.executor.allow()
    answers = await asyncio.gather(running, *queued)
    assert [answer.choices[0].text for answer in answers] == ["678"] * 3
    await rig.check_nothing_is_left()


async def test_choices_that_do_not_fit_together_are_refused_together(start: StartRig) -> None:
    rig, running = await busy(start, max_num_queued_reqs=3)
    with pytest.raises(openai.RateLimitError):
        await ask(rig, n=4)
    fitting = ask(rig, n=3)
    await rig.submitted()
    rig.executor.allow()
    assert len((await fitting).choices) == 3
    await running


async def test_a_full_server_tokenizes_nothing(
    start: StartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, running = await busy(start, max_num_queued_reqs=1)
    queued = ask(rig)
    await rig.submitted()
    service = rig.server.state.service
    assert service is not None
    monkeypatch.setattr(service, "encode", None)
    with pytest.raises(openai.RateLimitError):
        await ask(rig)
    status, _ = await rig.post("/tokenize", {"prompt": "x"})
    assert status == 429
    monkeypatch.undo()
    rig.executor.allow()
    await asyncio.gather(running, queued)


async def test_a_client_that_leaves_the_queue_makes_room(start: StartRig) -> None:
    rig, running = await busy(start, max_num_queued_reqs=1)
    async with aiohttp.ClientSession() as session:
        body = {"prompt": "leaver"}
        leaver = asyncio.create_task(session.post(rig.url + "/v1/completions", json=body))
        await rig.submitted()
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
    await rig.left()
    follower = ask(rig)
    await rig.submitted()
    rig.executor.allow()
    assert (await follower).choices[0].text == "678"
    await running


# ---- loading ----


async def test_a_server_answers_503_while_it_loads(start: StartRig, backend_of: BackendOf) -> None:
    rig = await start(is_ready=False)
    for path, body in {
        "/v1/completions": {"prompt": "x"},
        "/v1/chat/completions": {"messages": []},
        "/tokenize": {"prompt": "x"},
    }.items():
        status, answer = await rig.post(path, body)
        assert (status, answer["error"]["type"]) == (503, "unavailable_error")
    for path in ("/health", "/v1/models"):
        assert (await rig.get(path))[0] == 503
    assert (await rig.get("/version"))[0] == 200
    assert "sandwich:time_to_first_token_seconds_count" in await rig.metrics()
    rig.ready(backend_of(Setup(), rig.engine))
    assert await rig.get("/health") == (200, {"status": "ok"})
    assert (await ask(rig)).choices[0].text == "678"


async def test_an_address_in_use_is_a_users_mistake(rig: Rig) -> None:
    port = int(rig.url.rsplit(":", 1)[1])
    second = Server(ServerConfig(port=port))
    with pytest.raises(ConfigError, match=str(port)):
        await second.start()
    await second.stop()


# ---- draining ----


async def test_draining_finishes_what_runs_and_refuses_the_rest(start: StartRig) -> None:
    rig, running = await busy(start)
    queued = ask(rig)
    await rig.submitted()
    draining = asyncio.create_task(rig.server.drain(PATIENCE_S))
    with pytest.raises(openai.InternalServerError) as caught:
        await ask(rig)
    assert caught.value.status_code == 503
    status, answer = await rig.get("/health")
    assert (status, answer["error"]["type"]) == (503, "unavailable_error")
    assert not draining.done()
    rig.executor.allow()
    assert await draining is True
    assert (await running).choices[0].text == "678"
    assert (await queued).choices[0].text == "678"


async def test_what_does_not_finish_in_time_ends_with_an_error(start: StartRig) -> None:
    rig, whole = await busy(start)
    streamed = await ask(rig, stream=True)
    await rig.submitted()
    assert await rig.server.drain(0) is False
    with pytest.raises(openai.InternalServerError, match="shut down") as caught:
        await whole
    assert caught.value.status_code == 503
    with pytest.raises(openai.APIError, match="shut down"):
        [chunk async for chunk in streamed]
    rig.executor.allow()
    await rig.server.stop()
    await rig.executor.closed()
    assert rig.engine.stats.num_finished.total() <= 2


async def test_a_server_can_be_stopped_at_any_time_and_started_again(start: StartRig) -> None:
    rig, running = await busy(start)
    port = int(rig.url.rsplit(":", 1)[1])
    stopping = asyncio.create_task(rig.server.stop())
    with pytest.raises(openai.InternalServerError, match="shut down"):
        await running
    rig.executor.allow()
    await stopping
    again = await start(config=ServerConfig(port=port))
    assert (await ask(again)).choices[0].text == "678"


async def test_a_server_that_never_got_ready_can_be_stopped(start: StartRig) -> None:
    rig = await start(is_ready=False)
    assert await rig.server.drain(0) is True
    await rig.server.stop()


# ---- dead ----


async def test_a_dead_engine_leaves_nobody_waiting(
    start: StartRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, whole = await busy(start)
    queued = await ask(rig, stream=True)
    await rig.submitted()

    def bug(*_: object) -> None:
        raise AssertionError("the scheduler is broken")

    monkeypatch.setattr(rig.engine.scheduler, "commit", bug)
    rig.executor.allow()
    with pytest.raises(openai.InternalServerError, match="engine failed"):
        await whole
    with pytest.raises(openai.APIError, match="engine failed"):
        [chunk async for chunk in queued]
    assert (await rig.get("/health"))[0] == 503
    with pytest.raises(openai.InternalServerError, match="failed"):
        await ask(rig)
    assert await rig.server.drain(PATIENCE_S) is True
    await rig.executor.closed()


# ---- the whole command ----


async def test_sigterm_drains_and_ends(
    backend_of: BackendOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining = asyncio.Event()
    drain = Server.drain

    async def report_and_drain(self: Server, timeout_s: float) -> bool:
        draining.set()
        return await drain(self, timeout_s)

    monkeypatch.setattr(Server, "drain", report_and_drain)
    executor = GatedExecutor(LIMITS, "0123456789")
    ready: asyncio.Queue[str] = asyncio.Queue()
    serving = asyncio.create_task(
        _serve(
            ServerConfig(port=0, shutdown_timeout=PATIENCE_S),
            lambda _: backend_of(Setup(), Engine(executor)),
            ready.put_nowait,
        )
    )
    url = await asyncio.wait_for(ready.get(), PATIENCE_S)
    executor.hold()
    client = openai.AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    call = asyncio.create_task(client.completions.create(model=MODEL, prompt="hello", max_tokens=3))
    await executor.entered(1)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(draining.wait(), PATIENCE_S)
    with pytest.raises(openai.InternalServerError, match="draining"):
        await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
    executor.allow()
    assert (await call).choices[0].text == "678"
    await asyncio.wait_for(serving, PATIENCE_S)
    await executor.closed()
    await client.close()


async def test_a_second_signal_ends_the_draining(backend_of: BackendOf) -> None:
    executor = GatedExecutor(LIMITS)
    ready: asyncio.Queue[str] = asyncio.Queue()
    serving = asyncio.create_task(
        _serve(
            ServerConfig(port=0, shutdown_timeout=PATIENCE_S * 10),
            lambda _: backend_of(Setup(), Engine(executor)),
            ready.put_nowait,
        )
    )
    url = await asyncio.wait_for(ready.get(), PATIENCE_S)
    executor.hold()
    async with aiohttp.ClientSession() as session:
        body = {"prompt": "hello", "stream": True}
        async with session.post(url + "/v1/completions", json=body) as response:
            await executor.entered(1)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert "shut down before" in await response.text()
    executor.allow()
    await asyncio.wait_for(serving, PATIENCE_S)


async def test_a_signal_ends_the_loading(backend_of: BackendOf) -> None:
    begun, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def load(on_progress: Callable[[float], None]) -> Backend:
        on_progress(0.25)
        loop.call_soon_threadsafe(begun.set)
        leave.wait(PATIENCE_S)
        return backend_of(Setup(), Engine(GatedExecutor(LIMITS)))

    serving = asyncio.create_task(_serve(ServerConfig(port=0), load, pytest.fail))
    await begun.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, PATIENCE_S)
    leave.set()


async def test_an_error_of_the_loading_comes_out() -> None:
    def load(_: Callable[[float], None]) -> Backend:
        raise ModelError("no such model")

    with pytest.raises(ModelError, match="no such model"):
        await _serve(ServerConfig(port=0), load, pytest.fail)


async def test_health_says_how_far_the_loading_is(start: StartRig) -> None:
    rig = await start(is_ready=False)
    for share, text in ((0.0, "0% of the weights"), (0.426, "43% of the weights")):
        rig.server.loading(share)
        status, answer = await rig.get("/health")
        assert status == 503
        assert text in answer["error"]["message"]
