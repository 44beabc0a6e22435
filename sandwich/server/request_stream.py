"""What one call waits for: the events of its requests, on the event loop's side of the bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from sandwich.errors import SandwichError
from sandwich.requests.request import Request, TokenEvent


class StreamOwner(Protocol):
    """The bridge, as its streams see it."""

    def submit(self, stream: RequestStream, requests: Sequence[Request]) -> None:
        """Hand the requests to the engine; their events go to `stream`."""

    def abort(self, request_id: str) -> None:
        """End a request; its last event still comes. Again is no error."""

    def abandon(self, request_id: str) -> None:
        """As `abort`, for a request whose events nobody reads any more."""

    def settle(self, reason: str) -> None:
        """A request has ended for its client."""

    def release(self, stream: RequestStream, num_places: int) -> None:
        """Give back places that `stream` held."""


class RequestStream:
    """The events of the requests of one call, on the loop's side; made by `AsyncEngine.open`.

    Its reader settles each request whose last event it has read. A context manager: leaving it
    abandons the requests that are not settled and gives their places back.
    """

    def __init__(self, owner: StreamOwner, num_places: int) -> None:
        self._owner = owner
        self.num_places = num_places  # held now
        self._unsettled: set[str] = set()
        self._events: list[TokenEvent] = []
        self._failure: SandwichError | None = None
        self._ready = asyncio.Event()

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand the requests to the engine; as many as places were asked for."""
        assert len(requests) == self.num_places
        assert not self._unsettled
        if self._failure is not None:
            raise self._failure
        self._unsettled = {request.request_id for request in requests}
        self._owner.submit(self, requests)

    async def next(self, timeout_s: float | None = None) -> list[TokenEvent]:
        """Everything that arrived since the last call, at least one event; [] after `timeout_s`.

        Each request's events end with one that has a `finish_reason`. Raises the failure that ended
        the stream: UnavailableError, or what the engine found wrong with a request.
        """
        assert self._unsettled or self._events or self._failure, "nothing is left to wait for"
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return []
        events, self._events = self._events, []
        if self._failure is None:
            self._ready.clear()
        elif not events:
            raise self._failure
        return events

    def abort(self, request_id: str) -> None:
        """End a request of which no more tokens are wanted; its last event says "abort"."""
        self._owner.abort(request_id)

    def settle(self, request_id: str, reason: str) -> None:
        """The request's last event has been read; `reason` is what the client is told."""
        self._unsettled.remove(request_id)
        self._owner.settle(reason)

    def close(self) -> None:
        for request_id in self._unsettled:
            self._owner.abandon(request_id)
        self._unsettled.clear()
        self._owner.release(self, self.num_places)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def deliver(self, event: TokenEvent) -> None:
        self._events.append(event)
        self._ready.set()
        if event.finish_reason is not None:
            self._owner.release(self, 1)

    def fail(self, failure: SandwichError) -> None:
        self._failure = failure
        self._ready.set()
