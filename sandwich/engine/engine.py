"""The engine: one executor, one scheduler, one sampler, and the step that joins them.

All of it lives on one thread, except `check_request`, `limits` and reading `stats`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from codegen.spec import Phase
from sandwich.engine.pace import Pace
from sandwich.engine.sampler import Sampler
from sandwich.engine.scheduler import Scheduler
from sandwich.engine.stats import EngineStats
from sandwich.errors import InvalidRequestError, UnavailableError
from sandwich.executor.base import Batch, Executor, ExecutorLimits, NativeTime, StepOutput
from sandwich.requests.block_store import BlockStore
from sandwich.requests.request import Request, SampledTokens, TokenEvent
from schedules.mixed.plan import TAKE_TURNS, MixedPlan

logger = logging.getLogger(__name__)


class _StepStopped(Exception):
    """The step that ran was stopped: its prompts are nobody's any more."""


class Engine:
    """Runs requests until each has exactly one last event. Owns the executor."""

    def __init__(
        self,
        executor: Executor,
        mixed: MixedPlan = TAKE_TURNS,
        shares_prefixes: bool = True,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        store: BlockStore | None = None,
    ) -> None:
        self.executor = executor
        self.scheduler = Scheduler(executor.limits, mixed, shares_prefixes, pace, clock, store)
        self.sampler = Sampler()
        self._started = 0.0  # when the batch in flight began, by the scheduler's clock
        self._last_native: tuple[Phase, float] | None = None  # and when it ended; None: was idle
        self._is_closed = False
        self._has_failed = False  # a step has raised, and the executor is not proved since
        self._guard = threading.Lock()  # of the two that follow, and of `stop`
        self._doomed: set[str] = set()  # requests to be aborted
        self._prefilling: frozenset[str] = frozenset()  # whose prompts the step that runs computes
        self._process_id = os.getpid()

    @property
    def limits(self) -> ExecutorLimits:
        return self.executor.limits

    @property
    def stats(self) -> EngineStats:
        return self.scheduler.stats

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work()

    def check_usable(self) -> None:
        """Raise UnavailableError after `close`, and in a child of the process that made it."""
        if os.getpid() != self._process_id:
            raise UnavailableError(
                "the engine belongs to the process that this one was forked from, whose threads "
                "are not here; make it after the fork, or start processes with 'spawn'"
            )
        if self._is_closed:
            raise UnavailableError("the engine is closed; make a new one")

    def check_request(self, request: Request) -> None:
        """Raise InvalidRequestError or ContextLengthError if it can never run; any thread may.

        Raises UnavailableError as `check_usable` does.
        """
        self.check_usable()
        self.scheduler.check(request)
        params = request.params
        vocab_size = self.limits.vocab_size
        prompt = request.token_ids[: request.num_prompt_tokens]
        check_token_ids("prompt", [prompt.min(), prompt.max()] if len(prompt) else [], vocab_size)
        check_token_ids("logit_bias", params.bias_ids, vocab_size)
        check_token_ids("stop_token_ids", params.stop_token_ids, vocab_size)

    def add_request(self, request: Request) -> None:
        """Queue a request. Raises what `check_request` raises, and if the id is in use."""
        self.check_request(request)
        self.scheduler.add(request)

    def announce_abort(self, request_id: str) -> None:
        """A request will be aborted: a prefill step that runs for such requests alone is stopped.

        Any thread may call it; `abort` must follow.
        """
        with self._guard:
            self._doomed.add(request_id)
            self._stop_what_is_doomed()

    def abort(self, request_id: str) -> list[TokenEvent]:
        """End a request now; its last event, or nothing if it is unknown or has ended."""
        with self._guard:
            self._doomed.discard(request_id)
        return self.scheduler.abort(request_id)

    def adopt_thread(self) -> None:
        """Called by the thread that will make all steps, and that ends with the engine: it is
        pinned to a core of the decode plan.
        """
        self.executor.adopt_thread()

    def step(self) -> list[TokenEvent]:
        """One step; what the requests in it saw. Nothing if there is no work.

        A prefill step that runs beside decode steps spans several calls, and one of them is its
        end. A failure of the executor ends the requests of its batch with "error"; the others go
        on, once the executor has proved to be sound. What it raises if it is not ends the engine.
        """
        cache = self.scheduler.cache
        if self._has_failed and self.scheduler.in_flight is None and cache.num_available:
            self.executor.prove(cache.spare_block())
            self._has_failed = False
        started = self.scheduler.clock()
        if self.scheduler.in_flight and self.executor.is_done():
            return self._finish(self.scheduler.in_flight)
        events = self._start(corun) if (corun := self.scheduler.schedule_corun()) else []
        if batch := self.scheduler.schedule():
            events += self._complete(batch, partial(self.executor.run, batch), started)
        elif self.scheduler.in_flight:
            events += self._finish(self.scheduler.in_flight)
        return events

    def close(self) -> None:
        """Release the executor; the engine is of no use afterwards. Again is no error.

        A forked child has nothing to release: threads and memory are its parent's.
        """
        if not self._is_closed and os.getpid() == self._process_id:
            self._is_closed = True
            self.executor.close()

    def _start(self, batch: Batch) -> list[TokenEvent]:
        """Begin a batch that runs beside others; it has events now only if that fails."""
        self._started = self.scheduler.clock()
        self._watch_prompts(batch)
        try:
            self.executor.start(batch)
        except Exception as error:
            self._end_of_prompts(batch)
            self._has_failed = True
            return self.scheduler.commit(batch, _failed(batch, error))
        return []

    def _finish(self, batch: Batch) -> list[TokenEvent]:
        return self._complete(batch, self.executor.wait, self._started)

    def _complete(
        self, batch: Batch, execute: Callable[[], StepOutput], started: float
    ) -> list[TokenEvent]:
        """Get a batch's output, sample and commit it; `started` is when its step began."""
        try:
            tokens = self._sample(batch, execute)
        except _StepStopped:
            self.scheduler.retract(batch)
            return []
        except Exception as error:
            self._has_failed = True
            tokens = _failed(batch, error)
        is_corun = self.scheduler.in_flight is not None
        events = self.scheduler.commit(batch, tokens)
        self._account(batch, self.scheduler.clock() - started, is_corun)
        if not self.has_work():
            self._last_native = None
        return events

    def _sample(self, batch: Batch, execute: Callable[[], StepOutput]) -> list[SampledTokens]:
        started = self.scheduler.clock()
        self._watch_prompts(batch)
        try:
            output = execute()
        finally:
            was_stopped = self._end_of_prompts(batch)
        if was_stopped:
            raise _StepStopped
        self._note_switch(batch.phase, output.native)
        elapsed = self.scheduler.clock() - started
        native = elapsed if output.native_seconds is None else output.native_seconds
        self.stats.steps[batch.kind].run_seconds += native
        if self.scheduler.in_flight is None:
            self.scheduler.pace.learn(batch, elapsed)
        return self.sampler.sample(output, batch)

    def _watch_prompts(self, batch: Batch) -> None:
        """From now on the batch may be stopped, if its prompts are nobody's any more."""
        if batch.phase is Phase.PREFILL:
            with self._guard:
                prompts = batch.requests[batch.num_riders :]
                self._prefilling = frozenset(request.request_id for request in prompts)
                self._stop_what_is_doomed()

    def _stop_what_is_doomed(self) -> None:
        if self._prefilling and self._prefilling <= self._doomed:
            self.executor.stop()

    def _end_of_prompts(self, batch: Batch) -> bool:
        """The batch can be stopped no longer; whether it was."""
        if batch.phase is not Phase.PREFILL:
            return False
        with self._guard:
            self._prefilling = frozenset()
            return self.executor.take_stop()

    def _note_switch(self, phase: Phase, native: NativeTime | None) -> None:
        """Count the time between native calls of different phases; not while they overlap."""
        if native is None:
            return
        last_phase, last_ended = self._last_native or (phase, native.started)
        if last_phase is not phase and last_ended <= native.started:
            self.stats.plan_switches.add(native.started - last_ended)
        self._last_native = phase, native.ended

    def _account(self, batch: Batch, seconds: float, is_corun: bool) -> None:
        stats, num_tokens = self.stats.steps[batch.kind], batch.num_tokens
        stats.num_steps += 1
        stats.num_tokens += num_tokens
        stats.step_seconds += seconds
        if logger.isEnabledFor(logging.DEBUG):
            note = f" ({batch.num_riders} of them decode)" if batch.num_riders else ""
            note += " side by side" if is_corun else ""
            logger.debug(
                "%s: %d requests%s, %d tokens, %.0f us, %.1f tok/s",
                batch.kind.value,
                len(batch.requests),
                note,
                num_tokens,
                seconds * 1e6,
                num_tokens / seconds,
            )


def _failed(batch: Batch, error: Exception) -> list[SampledTokens]:
    """What the requests of a batch get if it raises; to be called where `error` is handled."""
    ids = [request.request_id for request in batch.requests]
    logger.exception("a %s step failed; it ends requests %s", batch.kind.value, ids)
    message = f"the {batch.kind.value} step failed: {error!r}"
    return [SampledTokens(error=message)] * len(batch.requests)


def check_token_ids(param: str, ids: Sequence[int] | npt.NDArray[Any], vocab_size: int) -> None:
    """Raise InvalidRequestError, naming the field `param`, for an id beyond the vocabulary."""
    if not len(ids):
        return
    least, most = min(ids), max(ids)
    if least < 0 or most >= vocab_size:
        raise InvalidRequestError(
            f"{param} has token id {least if least < 0 else most}, but ids of this model go from 0 "
            f"to {vocab_size - 1}; use the model's own tokenizer",
            param,
        )
