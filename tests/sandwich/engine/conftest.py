"""A driver for engine tests, and an executor that checks every batch it is given.

Test files get both through the fixture `drive`; for annotations they import the classes from here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from codegen.spec import Phase
from sandwich.engine.engine import Engine
from sandwich.engine.pace import Pace
from sandwich.executor.base import Batch, ExecutorLimits, StepKind, StepOutput
from sandwich.executor.null import NullExecutor
from sandwich.requests.block_store import BlockStore, Row
from sandwich.requests.request import Request, RequestTimings, TokenEvent
from sandwich.requests.sampling_params import SamplingParams
from schedules.mixed.plan import TAKE_TURNS, MixedPlan

MAX_STEPS = 10_000  # no test comes near; a live-lock ends here


def tiny_limits(**changes: int) -> ExecutorLimits:
    """Limits small enough that every edge is near."""
    sizes = {
        "block_size": 4,
        "num_blocks": 16,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 8,
        "max_model_len": 48,
        "vocab_size": 97,
    }
    return ExecutorLimits(**(sizes | changes))


class BadBatch(BaseException):
    """A batch is wrong. No Exception, which the engine would take for a failure of the executor."""


class AuditingExecutor(NullExecutor):
    """A null executor with a cache of what a token's keys and values depend on, the tokens in front
    of it and itself: each batch must find its past in its blocks.

    A started batch is done after `patience` runs beside it.
    """

    patience = 2

    def __init__(self, limits: ExecutorLimits, failing_runs: Collection[int] = ()) -> None:
        super().__init__(limits, failing_runs)
        self.batches: list[Batch] = []
        self.poisoned: set[str] = set()  # ids of requests whose logits are NaN
        self._cached = np.zeros(limits.num_blocks * limits.block_size, np.int64)
        self._in_flight: Batch | None = None
        self.num_beside = 0  # runs since the last start
        self.watch: Callable[[Batch], None] = lambda batch: None  # told of each batch it is to run

    def start(self, batch: Batch) -> None:
        try:
            assert self._in_flight is None, "two batches in flight"
            assert batch.kind is StepKind.PREFILL
        except AssertionError as error:
            raise BadBatch(f"{error}: {batch}") from error
        super().start(batch)
        self._in_flight, self.num_beside = batch, 0

    def is_done(self) -> bool:
        return self.num_beside >= self.patience

    def wait(self) -> StepOutput:
        self._in_flight = None
        return super().wait()

    @property
    def block_nbytes(self) -> int:
        return self.limits.block_size * self._cached.itemsize

    def save_block(self, block_id: int, row: Row) -> None:
        row.view(np.int64)[:] = self._cached.reshape(self.limits.num_blocks, -1)[block_id]

    def load_block(self, block_id: int, row: Row) -> None:
        self._cached.reshape(self.limits.num_blocks, -1)[block_id] = row.view(np.int64)

    def run(self, batch: Batch) -> StepOutput:
        self.batches.append(batch)
        self.watch(batch)
        self.num_beside += 1
        output = super().run(batch)
        try:
            self._audit(batch)
            self._audit_flight(batch)
        except (AssertionError, IndexError) as error:
            raise BadBatch(f"{error}: {batch}") from error
        is_poisoned = [batch.requests[index].request_id in self.poisoned for index in batch.sampled]
        kept = np.array(is_poisoned, np.bool_)[len(is_poisoned) - len(output.logits) :]
        logits = np.where(kept[:, None], np.nan, output.logits).astype(np.float32)
        peaks = np.where(is_poisoned, np.nan, output.peaks).tolist()
        return output._replace(logits=logits, peaks=peaks)

    def _audit(self, batch: Batch) -> None:
        self._audit_limits(batch)
        slots = self.arrays["slots"][: batch.num_tokens]
        assert len(set(slots.tolist())) == batch.num_tokens
        blocks = self._cached.reshape(self.limits.num_blocks, -1)
        for source, target in batch.copies:
            blocks[target] = blocks[source]
        for index in range(len(batch.requests)):
            self._audit_sequence(batch, index)

    def _audit_limits(self, batch: Batch) -> None:
        limits, num_seqs = self.limits, len(batch.requests)
        assert 1 <= num_seqs <= limits.max_num_seqs
        assert len(set(batch.requests)) == num_seqs == len(batch.starts) == len(batch.num_new)
        assert min(batch.num_new) >= 1
        assert sum(batch.num_new) == batch.num_tokens
        if batch.phase is Phase.DECODE:
            assert list(batch.num_new) == [1] * num_seqs
        else:
            assert batch.num_tokens <= limits.max_step_tokens
            assert batch.num_tokens - batch.num_riders <= limits.max_num_batched_tokens
            self._audit_riders(batch)
        assert len(batch.logit_rows) == len(batch.sampled) == len(batch.wants)
        assert len(set(batch.logit_rows)) == len(batch.logit_rows)
        is_given = [want.is_of_given_token for want in batch.wants]
        assert is_given == sorted(is_given, reverse=True), "rows to choose from come last"
        assert is_given.count(False) <= limits.max_num_logits

    def _audit_flight(self, batch: Batch) -> None:
        """A batch beside another decodes, and leaves the other's requests and blocks alone."""
        if self._in_flight is None:
            return
        assert batch.kind is StepKind.DECODE
        assert not set(batch.requests) & set(self._in_flight.requests)
        slots = self.arrays["slots"][: batch.num_tokens]
        blocks = set((slots // self.limits.block_size).tolist())
        for request in self._in_flight.requests:
            assert not blocks & set(request.block_table.ids)

    def _audit_riders(self, batch: Batch) -> None:
        riders, others = batch.requests[: batch.num_riders], batch.requests[batch.num_riders :]
        assert list(batch.num_new)[: len(riders)] == [1] * len(riders)
        assert not any(request.is_prefilling for request in riders)
        assert all(request.is_prefilling for request in others)
        assert others, "a step of riders alone is a decode step"

    def _audit_sequence(self, batch: Batch, index: int) -> None:
        request, start, count = batch.requests[index], batch.starts[index], batch.num_new[index]
        first, context_len = sum(batch.num_new[:index]), start + count
        rows = slice(first, first + count)
        assert start == request.num_computed
        positions = self.arrays["positions"][rows]
        assert np.array_equal(positions, np.arange(start, context_len))
        assert context_len <= min(request.num_tokens, self.limits.max_model_len)
        past = np.arange(context_len)
        blocks = self.arrays["block_tables"][index, past // self.limits.block_size]
        slots = blocks * self.limits.block_size + past % self.limits.block_size
        assert np.array_equal(slots[start:], self.arrays["slots"][rows])
        assert np.array_equal(request.token_ids[start:context_len], self.arrays["token_ids"][rows])
        contents = prefix_hashes(request, context_len)
        self._cached[slots[start:]] = contents[start:]
        assert np.array_equal(self._cached[slots], contents)
        wanted = zip(batch.logit_rows, batch.sampled, strict=True)
        own_rows = [row for row, owner in wanted if owner == index]
        assert all(rows.start <= row < rows.stop for row in own_rows)
        if request.pool is not None:
            assert not own_rows
        elif request.params.prompt_logprobs is None:
            at_end = [rows.stop - 1] if context_len == request.num_tokens else []
            assert own_rows == at_end
        else:
            assert context_len < request.num_tokens or rows.stop - 1 in own_rows


def prefix_hashes(request: Request, num_tokens: int) -> list[int]:
    """A number for each of the first tokens that depends on all up to it and on the salt."""
    seed = hash(request.cache_salt)
    return list(accumulate(request.token_ids[:num_tokens].tolist(), _mix, initial=seed))[1:]


def _mix(before: int, token_id: int) -> int:
    return hash((before, token_id))


class Driver:
    """Adds requests, takes steps, keeps their events; checks the engine's integrity after each."""

    def __init__(
        self,
        limits: ExecutorLimits,
        failing_runs: Collection[int] = (),
        mixed: MixedPlan = TAKE_TURNS,
        shares_prefixes: bool = False,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        num_stored: int = 0,
    ) -> None:
        self.executor = AuditingExecutor(limits, failing_runs)
        nbytes = num_stored * self.executor.block_nbytes
        self.store = BlockStore(self.executor, nbytes) if num_stored else None
        self.engine = Engine(self.executor, mixed, shares_prefixes, pace, clock, store=self.store)
        self.requests: dict[str, Request] = {}
        self.events: dict[str, list[TokenEvent]] = defaultdict(list)

    def add(
        self,
        prompt: int | Sequence[int],
        request_id: str | None = None,
        eos: Collection[int] = (),
        choice: int = 0,
        salt: str = "",
        priority: int = 0,
        **params: Any,
    ) -> str:
        """Add a request, greedy unless told otherwise; `prompt` may be the length of one."""
        name = request_id or f"r{len(self.requests)}"
        tokens = list(range(1, prompt + 1)) if isinstance(prompt, int) else list(prompt)
        wanted = SamplingParams(**({"temperature": 0.0, "max_tokens": 4} | params))
        now = self.engine.scheduler.clock()
        request = Request(name, tokens, wanted, eos, choice, now, salt, priority=priority)
        self.engine.add_request(request)
        self.requests[name] = request
        return name

    def step(self) -> list[TokenEvent]:
        return self._record(self.engine.step())

    def abort(self, request_id: str) -> list[TokenEvent]:
        return self._record(self.engine.abort(request_id))

    def run(self) -> Driver:
        """Step until nothing is left; then every block must be free and every request ended."""
        num_steps = 0
        while self.engine.has_work():
            self.step()
            num_steps += 1
            assert num_steps < MAX_STEPS, "live-lock"
        assert self.engine.scheduler.cache.num_used == 0
        assert all(self.end(name).finish_reason for name in self.requests)
        return self

    def tokens(self, request_id: str) -> list[int]:
        return [id_ for event in self.events[request_id] for id_ in event.token_ids]

    def end(self, request_id: str) -> TokenEvent:
        return self.events[request_id][-1]

    def timings(self, request_id: str) -> RequestTimings:
        timings = self.end(request_id).timings
        assert timings is not None
        return timings

    def chunks(self) -> list[tuple[str, list[int]]]:
        """Kind and number of tokens per sequence of each batch so far."""
        return [(batch.kind.value, list(batch.num_new)) for batch in self.executor.batches]

    def _record(self, events: list[TokenEvent]) -> list[TokenEvent]:
        for event in events:
            past = self.events[event.request_id]
            assert not (past and past[-1].finish_reason), f"{event} comes after the end"
            assert (event.timings is not None) == (event.finish_reason is not None)
            past.append(event)
        self.engine.scheduler.check_integrity()
        return events


@pytest.fixture(scope="session")
def drive() -> Callable[..., Driver]:
    """`drive(failing_runs=(), mixed=TAKE_TURNS, shares_prefixes=False, pace=None, clock=...,
    num_stored=0, **changed_limits)`: a Driver over a tiny, audited null executor; `num_stored`:
    blocks of a second tier.
    """

    def make(
        failing_runs: Collection[int] = (),
        mixed: MixedPlan = TAKE_TURNS,
        shares_prefixes: bool = False,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
        num_stored: int = 0,
        **changes: int,
    ) -> Driver:
        limits = tiny_limits(**changes)
        return Driver(limits, failing_runs, mixed, shares_prefixes, pace, clock, num_stored)

    return make
