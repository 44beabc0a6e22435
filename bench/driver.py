"""Drives a real engine through whole prompts and through decode steps, and times every step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from sandwich.engine.engine import Engine
from sandwich.errors import SandwichError
from sandwich.executor.base import Batch, Executor, ExecutorLimits, StepKind, StepOutput
from sandwich.requests.block_store import Row
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from schedules.mixed.plan import TAKE_TURNS


class BenchmarkError(SandwichError):
    """The engine did not do what was to be measured."""


@dataclass(frozen=True)
class StepTime:
    """One step of the engine: wall time and, within it, that of the native call."""

    seconds: float
    native_seconds: float
    contexts: tuple[int, ...]  # tokens in the cache of each sequence, after the step

    @property
    def host_overhead_ratio(self) -> float:
        return (self.seconds - self.native_seconds) / self.seconds


class StopWatch:
    """An executor that notes how long the native call of the last run of another one took.

    Of an executor without a native call, that is the whole run.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.native_seconds = 0.0

    @property
    def limits(self) -> ExecutorLimits:
        return self._executor.limits

    def adopt_thread(self) -> None:
        self._executor.adopt_thread()

    def run(self, batch: Batch) -> StepOutput:
        started = time.perf_counter()
        output = self._executor.run(batch)
        seconds = time.perf_counter() - started
        self.native_seconds = seconds if output.native_seconds is None else output.native_seconds
        return output

    def start(self, batch: Batch) -> None:
        self._executor.start(batch)

    def stop(self) -> None:
        self._executor.stop()

    def take_stop(self) -> bool:
        return self._executor.take_stop()

    def is_done(self) -> bool:
        return self._executor.is_done()

    def wait(self) -> StepOutput:
        return self._executor.wait()

    def prove(self, block_id: int) -> None:
        self._executor.prove(block_id)

    @property
    def block_nbytes(self) -> int:
        return self._executor.block_nbytes

    def save_block(self, block_id: int, row: Row) -> None:
        self._executor.save_block(block_id, row)

    def load_block(self, block_id: int, row: Row) -> None:
        self._executor.load_block(block_id, row)

    def close(self) -> None:
        self._executor.close()


class EngineDriver:
    """Sends random prompts of given lengths; greedy, and no token ends a request."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._watch = engine.executor = StopWatch(engine.executor)
        engine.scheduler.use(TAKE_TURNS)  # each phase by itself, in whole steps
        engine.scheduler.cache.shares_prefixes = False  # every prompt is computed whole
        self._engine = engine
        self._rng = np.random.default_rng(seed)
        self._numbers = count()

    def prefill(self, num_tokens: int) -> list[StepTime]:
        """The steps from a new prompt to its first token."""
        request = self._add(num_tokens, max_tokens=1)
        steps = []
        while not request.is_finished:
            steps.append(self._step(StepKind.PREFILL, [request]))
        return steps

    def decode(
        self, batch: int, context: int, num_steps: int, between: Callable[[int], None]
    ) -> Iterator[StepTime]:
        """`num_steps` steps that each add a token to `batch` sequences of `context` tokens or more.

        `between(i)` is called before step i, off the clock. Prefill and decode take turns until the
        last prompt is in, so the first sequences are longer by then; `contexts` says how much.
        """
        num_turns = decode_headroom(batch, context, self._engine.limits.max_num_batched_tokens)
        requests = [self._add(context, num_turns + num_steps) for _ in range(batch)]
        while any(request.num_output_tokens == 0 for request in requests):
            self._engine.step()
        for i in range(num_steps):
            between(i)
            yield self._step(StepKind.DECODE, requests)
        for request in requests:
            self._engine.abort(request.request_id)

    def _add(self, num_tokens: int, max_tokens: int) -> Request:
        request = Request(
            request_id=f"bench-{next(self._numbers)}",
            prompt_token_ids=self._rng.integers(self._engine.limits.vocab_size, size=num_tokens),
            params=SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True),
        )
        self._engine.add_request(request)
        return request

    def _step(self, kind: StepKind, requests: list[Request]) -> StepTime:
        stats = self._engine.stats.steps[kind]
        num_steps = stats.num_steps
        started = time.perf_counter()
        events = self._engine.step()
        seconds = time.perf_counter() - started
        if errors := [event.error for event in events if event.error]:
            raise BenchmarkError(errors[0])
        if stats.num_steps != num_steps + 1:
            raise BenchmarkError(
                f"a {kind.value} step was due, but the engine did something else; "
                "is the KV cache too small for the batch (--kv-cache-size)?"
            )
        contexts = tuple(request.num_computed for request in requests)
        return StepTime(seconds, self._watch.native_seconds, contexts)


def decode_headroom(batch: int, context: int, max_num_batched_tokens: int) -> int:
    """Tokens that a sequence may gain before the last of `batch` prompts of `context` is in."""
    return batch * -(-context // max_num_batched_tokens) + 1
