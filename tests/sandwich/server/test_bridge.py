"""The bridge alone: idle without work, one wake-up per step, orders in time, bounded waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from sandwich.engine.engine import Engine
from sandwich.errors import ContextLengthError, QueueFullError, UnavailableError
from sandwich.requests.request import Request, TokenEvent
from sandwich.requests.sampling_params import SamplingParams
from sandwich.server.bridge import AsyncEngine, BridgeState
from sandwich.server.request_stream import RequestStream
from tests.sandwich.server.conftest import LIMITS, PATIENCE_S, GatedExecutor

PARAMS = SamplingParams(temperature=0.0, max_tokens=3)


def request(
    name: str, prompt: tuple[int, ...] = (1, 2), params: SamplingParams = PARAMS
) -> Request:
    return Request(name, prompt, params)


@pytest.fixture
def executor() -> GatedExecutor:
    return GatedExecutor(LIMITS)


@pytest.fixture
async def bridge(executor: GatedExecutor) -> AsyncIterator[AsyncEngine]:
    bridge = AsyncEngine(Engine(executor), max_num_queued_reqs=4)
    bridge.start()
    yield bridge
    executor.allow()
    await bridge.stop()


async def run(bridge: AsyncEngine, *requests: Request) -> list[TokenEvent]:
    """All events of the requests."""
    with bridge.open(len(requests)) as stream:
        stream.submit(requests)
        return await read_to_end(stream, len(requests))


async def read_to_end(stream: RequestStream, num_requests: int) -> list[TokenEvent]:
    """All events of the stream's requests, which are settled."""
    events: list[TokenEvent] = []
    while num_requests > 0:
        for event in await stream.next(PATIENCE_S):
            events.append(event)
            if event.finish_reason is not None:
                stream.settle(event.request_id, event.finish_reason)
                num_requests -= 1
    return events


class WatchedCondition(threading.Condition):
    """Reports each wait, which must be without a timeout: a thread that polls is not idle."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is None
        self.waiting.set()
        return super().wait()


async def test_an_idle_engine_blocks_until_there_is_work(executor: GatedExecutor) -> None:
    bridge = AsyncEngine(Engine(executor), max_num_queued_reqs=4)
    condition = WatchedCondition()
    bridge._inbox._changed = condition
    bridge.start()
    for num_served in range(3):
        assert await asyncio.to_thread(condition.waiting.wait, PATIENCE_S)
        assert executor.num_runs == num_served * 3
        condition.waiting.clear()
        await run(bridge, request(f"r{num_served}"))
    await bridge.stop()
    assert not bridge._thread.is_alive()


async def test_the_loop_is_woken_once_per_step(
    bridge: AsyncEngine, executor: GatedExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wake_ups = []
    wake = bridge._loop.call_soon_threadsafe
    executor.hold()
    with bridge.open(4) as stream:
        stream.submit([request(f"r{i}") for i in range(4)])
        await executor.entered(1)

        def count(callback: object, *args: object) -> object:
            if threading.current_thread() is bridge._thread:
                wake_ups.append(executor.num_runs)
            return wake(callback, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(bridge._loop, "call_soon_threadsafe", count)
        executor.allow()
        await read_to_end(stream, 4)
    assert wake_ups == [1, 2, 3]


async def test_each_request_has_one_last_event(bridge: AsyncEngine) -> None:
    events = await run(bridge, *(request(f"r{i}") for i in range(8)))
    for i in range(8):
        own = [event for event in events if event.request_id == f"r{i}"]
        assert [event.finish_reason for event in own] == [None, None, "length"]
        assert own[-1].timings is not None


async def test_an_aborted_request_still_has_its_last_event(
    bridge: AsyncEngine, executor: GatedExecutor
) -> None:
    executor.hold()
    with bridge.open(1) as stream:
        stream.submit([request("r", params=SamplingParams(max_tokens=100))])
        executor.allow(1)
        assert len(await stream.next()) == 1
        stream.abort("r")
        stream.abort("r")
        executor.allow()
        assert (await read_to_end(stream, 1))[-1].finish_reason == "abort"
        stream.abort("r")  # too late, and harmless
    assert bridge.num_places_taken == 0


async def test_a_request_that_can_never_run_fails_its_stream(bridge: AsyncEngine) -> None:
    too_long = request("r", prompt=(1,) * (LIMITS.max_model_len + 1))
    with pytest.raises(ContextLengthError):
        bridge.check(too_long)
    with bridge.open(2) as stream:
        stream.submit([too_long, request("s")])
        with pytest.raises(ContextLengthError):
            await read_to_end(stream, 2)
    assert bridge.num_places_taken == 0
    assert len(await run(bridge, request("t"))) == 3


async def test_silence_ends_with_the_timeout(bridge: AsyncEngine, executor: GatedExecutor) -> None:
    executor.hold()
    with bridge.open(1) as stream:
        stream.submit([request("r")])
        assert await stream.next(timeout_s=0) == []


async def test_places_are_taken_before_and_given_back_after(bridge: AsyncEngine) -> None:
    assert bridge.max_num_places == 8
    with bridge.open(5):
        with bridge.open(3) as last, pytest.raises(QueueFullError):
            bridge.open(1)
        assert last.num_places == 0
        with bridge.open(3):
            assert bridge.num_places_taken == 8
    assert bridge.num_places_taken == 0


async def test_a_place_is_free_as_soon_as_its_request_ends(bridge: AsyncEngine) -> None:
    short = request("short", params=SamplingParams(max_tokens=1))
    long = request("long", params=SamplingParams(max_tokens=100, ignore_eos=True))
    with bridge.open(2) as stream:
        stream.submit([short, long])
        while bridge.num_places_taken == 2:
            await stream.next(PATIENCE_S)
        assert bridge.num_places_taken == 1
    assert bridge.num_places_taken == 0


async def test_the_time_to_come_back_follows_the_rate_of_ends(bridge: AsyncEngine) -> None:
    now = asyncio.get_running_loop().time()  # the clock of time.monotonic()
    bridge._ends.extend([now - 40.0, now - 20.0])  # one every 20 s
    with bridge.open(7):
        with pytest.raises(QueueFullError) as one:
            bridge.open(2)
        assert one.value.retry_after_s == pytest.approx(20.0, rel=0.2)
        with pytest.raises(QueueFullError) as many:
            bridge.open(8)
        assert many.value.retry_after_s == 60.0


async def test_a_stream_that_was_opened_before_the_draining_may_submit(
    bridge: AsyncEngine,
) -> None:
    with bridge.open(1) as stream:
        draining = asyncio.create_task(bridge.drain(PATIENCE_S))
        await asyncio.wait({draining}, timeout=0)
        assert bridge.state is BridgeState.DRAINING
        with pytest.raises(UnavailableError, match="draining"):
            bridge.open(1)
        stream.submit([request("r", params=SamplingParams(max_tokens=1))])
        assert (await stream.next(PATIENCE_S))[0].finish_reason == "length"
    assert await draining is True


async def test_a_stopped_bridge_fails_whoever_waits(
    bridge: AsyncEngine, executor: GatedExecutor
) -> None:
    executor.hold()
    with bridge.open(1) as late, bridge.open(1) as stream:
        stream.submit([request("r")])
        waiting = asyncio.create_task(stream.next())
        await executor.entered(1)
        stopping = asyncio.create_task(bridge.stop())
        with pytest.raises(UnavailableError, match="stopped"):
            await waiting
        with pytest.raises(UnavailableError, match="stopped"):
            late.submit([request("s")])
        executor.allow()
        await stopping
    await executor.closed()
    with pytest.raises(UnavailableError):
        bridge.open(1)


async def test_a_bridge_that_never_started_closes_its_engine(executor: GatedExecutor) -> None:
    bridge = AsyncEngine(Engine(executor), max_num_queued_reqs=1)
    await bridge.stop()
    assert executor.is_closed


async def test_an_observer_that_fails_does_not_hold_up_the_answers(
    executor: GatedExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def on_event(self, request: Request, event: TokenEvent, now: float) -> None:
            raise ZeroDivisionError

        def on_end(self, reason: str) -> None:
            pass

    bridge = AsyncEngine(Engine(executor), 4, Broken())
    bridge.start()
    assert len(await run(bridge, request("a"), request("b"))) == 6
    await bridge.stop()
    assert "ZeroDivisionError" in caplog.text


async def test_a_step_that_does_not_end_is_given_up(executor: GatedExecutor) -> None:
    bridge = AsyncEngine(Engine(executor), 4, most_step_s=0.01)
    bridge.start()
    executor.hold()
    with bridge.open(1) as stream:
        stream.submit([request("r")])
        with pytest.raises(UnavailableError, match=r"the engine failed.*restarted"):
            await stream.next()
    with pytest.raises(UnavailableError):
        bridge.open(1)
    executor.allow()
    await bridge.stop()
