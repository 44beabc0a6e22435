"""The bridge: asyncio on one side, the engine's thread on the other. The one file that crosses.

The engine lives on one thread of its own, which blocks while there is nothing to do. Work enters
through an inbox that the thread empties between steps; events leave with one wake-up of the event
loop per step.

The number of requests in the house is bounded, every wait ends (with events, or with the failure
that ended them), and a request whose owner has gone is aborted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Protocol

from sandwich.engine.engine import Engine
from sandwich.errors import InvalidRequestError, QueueFullError, SandwichError, UnavailableError
from sandwich.requests.request import Request, TokenEvent
from sandwich.server.request_stream import RequestStream

logger = logging.getLogger("sandwich.server.bridge")

_NUM_REMEMBERED_ENDS = 64  # ended requests from which the waiting time of a refused one is guessed
_RETRY_AFTER_S = (1.0, 60.0)
_UNKNOWN_RETRY_AFTER_S = 5.0
_MOST_STEP_S = 600.0  # a step that takes longer will never end
_WATCH_EVERY_S = 5.0
_JOIN_TIMEOUT_S = 30.0  # a step is bounded; a thread that takes longer hangs and is left behind


class BridgeState(Enum):
    NEW = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Observer(Protocol):
    """Told what happens, on the loop's thread. `now` is time.monotonic()."""

    def on_event(self, request: Request, event: TokenEvent, now: float) -> None:
        """An event has left the engine."""

    def on_end(self, reason: str) -> None:
        """A request has ended for its client; once for each. "abort": nobody waited any more."""


@dataclass(frozen=True, slots=True)
class _Orders:
    """What the loop asked for since the last step."""

    added: tuple[Request, ...]
    aborted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Delivery:
    """What one step gave, for the loop."""

    time: float
    events: list[TokenEvent]
    refused: list[tuple[str, SandwichError]]


class _Inbox:
    """Orders on their way to the engine's thread; any thread may put, only the engine's takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._added: dict[str, Request] = {}
        self._aborted: list[str] = []
        self._is_closed = False

    def add(self, requests: Sequence[Request]) -> None:
        with self._changed:
            self._added.update((request.request_id, request) for request in requests)
            self._changed.notify()

    def abort(self, request_id: str) -> bool:
        """False if the engine never saw the request, which then has no last event."""
        with self._changed:
            if self._added.pop(request_id, None) is not None:
                return False
            self._aborted.append(request_id)
            self._changed.notify()
            return True

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def take(self, *, wait: bool) -> _Orders | None:
        """All orders; with `wait`, blocks until there is one. None: the inbox is closed."""
        with self._changed:
            while wait and not (self._added or self._aborted or self._is_closed):
                self._changed.wait()
            if self._is_closed:
                return None
            orders = _Orders(tuple(self._added.values()), tuple(self._aborted))
            self._added.clear()
            self._aborted.clear()
            return orders


@dataclass(slots=True)
class _Ticket:
    """A request in the engine and who waits for its events."""

    request: Request
    stream: RequestStream | None  # None: nobody
    is_aborted: bool = False


class AsyncEngine:
    """An engine on a thread of its own, for use from one event loop.

    At most `max_num_seqs` + `max_num_queued_reqs` requests are in the house; `open` refuses more.
    If the engine's thread dies, or a step takes longer than `most_step_s`, everybody is told.
    """

    def __init__(
        self,
        engine: Engine,
        max_num_queued_reqs: int,
        observer: Observer | None = None,
        most_step_s: float = _MOST_STEP_S,
    ) -> None:
        self.stats = engine.stats
        self.max_num_places = engine.limits.max_num_seqs + max_num_queued_reqs
        self.num_places_taken = 0
        self.state = BridgeState.NEW
        self._engine = engine
        self._observer = observer
        self._inbox = _Inbox()
        self._thread = threading.Thread(target=self._run, name="sandwich-engine", daemon=True)
        self._tickets: dict[str, _Ticket] = {}
        self._streams: set[RequestStream] = set()
        self._ends: deque[float] = deque(maxlen=_NUM_REMEMBERED_ENDS)
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._most_step_s = most_step_s
        self._step_began: float | None = None  # by time.monotonic(); None: the engine is idle
        self._watch: asyncio.TimerHandle | None = None

    # ---- the loop's side ----

    def start(self) -> None:
        assert self.state is BridgeState.NEW
        self._loop = asyncio.get_running_loop()
        self.state = BridgeState.READY
        self._thread.start()
        self._look_after()

    def check(self, request: Request) -> None:
        """Raise InvalidRequestError or ContextLengthError for a request that could never run."""
        self._engine.check_request(request)

    def open(self, num_places: int) -> RequestStream:
        """Places for `num_places` requests, taken before any work is done for them.

        Raises UnavailableError, QueueFullError, or InvalidRequestError if so many never fit.
        """
        if self.state is not BridgeState.READY:
            raise UnavailableError(f"the server is {self.state.value} and takes no new requests")
        if num_places > self.max_num_places:
            raise InvalidRequestError(
                f"the request asks for {num_places} completions, but this server holds "
                f"{self.max_num_places} at most; send fewer prompts or a smaller n"
            )
        num_missing = self.num_places_taken + num_places - self.max_num_places
        if num_missing > 0:
            raise QueueFullError(
                f"the server is full: it holds {self.num_places_taken} of "
                f"{self.max_num_places} requests; try again later",
                self._retry_after_s(num_missing),
            )
        stream = RequestStream(self, num_places)
        self.num_places_taken += num_places
        self._streams.add(stream)
        self._is_empty.clear()
        return stream

    async def wait_until_empty(self) -> None:
        """Until no place is taken: every request has ended or lost its owner."""
        await self._is_empty.wait()

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new and wait for what runs; after `timeout_s` end it. True: all finished."""
        if self.state is BridgeState.READY:
            self.state = BridgeState.DRAINING
        try:
            async with asyncio.timeout(timeout_s):
                await self.wait_until_empty()
        except TimeoutError:
            self._fail_all(f"the server shut down before this request finished ({timeout_s:g} s)")
            return False
        return True

    async def stop(self) -> None:
        """End the thread after the step it is in; whoever still waits gets UnavailableError."""
        was_started = self.state is not BridgeState.NEW
        if self._watch is not None:
            self._watch.cancel()
        if self.state is not BridgeState.FAILED:
            self.state = BridgeState.STOPPED
        self._fail_all("the server stopped")
        self._inbox.close()
        if was_started:
            await asyncio.to_thread(self._thread.join, _JOIN_TIMEOUT_S)
        else:
            self._engine.close()
        if self._thread.is_alive():
            logger.error("the engine is still in a step after %g s", _JOIN_TIMEOUT_S)

    # As request_stream.StreamOwner.

    def submit(self, stream: RequestStream, requests: Sequence[Request]) -> None:
        for request in requests:
            assert request.request_id not in self._tickets
            self._tickets[request.request_id] = _Ticket(request, stream)
        self._inbox.add(requests)

    def abort(self, request_id: str) -> None:
        ticket = self._tickets.get(request_id)
        if ticket is not None and not ticket.is_aborted:
            ticket.is_aborted = True
            if self._inbox.abort(request_id):
                self._engine.announce_abort(request_id)
            else:
                del self._tickets[request_id]

    def abandon(self, request_id: str) -> None:
        self.abort(request_id)
        if ticket := self._tickets.get(request_id):
            ticket.stream = None
        self.settle("abort")

    def settle(self, reason: str) -> None:
        if self._observer is not None:
            self._observer.on_end(reason)

    def release(self, stream: RequestStream, num_places: int) -> None:
        stream.num_places -= num_places
        self.num_places_taken -= num_places
        if stream.num_places == 0:
            self._streams.discard(stream)
        if self.num_places_taken == 0:
            self._is_empty.set()

    def _retry_after_s(self, num_missing: int) -> float:
        """How long until `num_missing` requests have ended, at the rate of the last ones."""
        if len(self._ends) < 2:
            return _UNKNOWN_RETRY_AFTER_S
        seconds_per_end = (time.monotonic() - self._ends[0]) / len(self._ends)
        least, most = _RETRY_AFTER_S
        return min(max(num_missing * seconds_per_end, least), most)

    def _receive(self, delivery: _Delivery) -> None:
        received = []
        for event in delivery.events:
            if ticket := self._tickets.get(event.request_id):
                self._hand_on(event, ticket)
                received.append((ticket.request, event))
        for request_id, error in delivery.refused:
            refused = self._tickets.pop(request_id, None)
            if refused is not None and refused.stream is not None:
                refused.stream.fail(error)
        if self._observer is not None:  # last: whoever waits does not depend on it
            for request, event in received:
                self._observer.on_event(request, event, delivery.time)

    def _hand_on(self, event: TokenEvent, ticket: _Ticket) -> None:
        if event.finish_reason is not None:
            del self._tickets[event.request_id]
            self._ends.append(time.monotonic())
        if ticket.stream is not None:
            ticket.stream.deliver(event)

    def _fail_all(self, message: str) -> None:
        for stream in tuple(self._streams):
            stream.fail(UnavailableError(message))

    def _look_after(self) -> None:
        """Now and then, see whether the engine's thread is still at work."""
        began = self._step_began
        if began is not None and time.monotonic() - began > self._most_step_s:
            logger.critical("a step has taken more than %g s", self._most_step_s)
            self._engine_died(TimeoutError())
            return
        every_s = min(_WATCH_EVERY_S, self._most_step_s)
        self._watch = self._loop.call_later(every_s, self._look_after)

    def _engine_died(self, error: BaseException) -> None:
        self.state = BridgeState.FAILED
        self._tickets.clear()
        self._fail_all(f"the engine failed ({type(error).__name__}); the server must be restarted")

    # ---- the engine's thread ----

    def _run(self) -> None:
        try:
            self._engine.adopt_thread()
            while (orders := self._inbox.take(wait=not self._engine.has_work())) is not None:
                delivery = self._work(orders)
                self._call_loop(partial(self._receive, delivery))
        except BaseException as error:
            logger.critical("the engine's thread died", exc_info=error)
            self._call_loop(partial(self._engine_died, error))
        finally:
            self._engine.close()

    def _work(self, orders: _Orders) -> _Delivery:
        """Obey the orders and make one step."""
        self._step_began = time.monotonic()
        events: list[TokenEvent] = []
        refused: list[tuple[str, SandwichError]] = []
        for request in orders.added:
            try:
                self._engine.add_request(request)
            except SandwichError as error:
                refused.append((request.request_id, error))
        for request_id in orders.aborted:
            events += self._engine.abort(request_id)
        events += self._engine.step()
        self._step_began = None
        return _Delivery(time.monotonic(), events, refused)

    def _call_loop(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody listens
            self._loop.call_soon_threadsafe(callback)
