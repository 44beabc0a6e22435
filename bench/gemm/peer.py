"""What the other libraries of the GEMM benchmark have in common: threads, weights, trials."""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import psutil  # type: ignore[import-untyped]

from bench.gemm.contest import (
    SLOW_SECONDS,
    Contestant,
    Problem,
    RefusedError,
    fill_random,
    fill_random_bytes,
)
from platforms.memory import Arena

TRIAL_SECONDS = 0.015  # of each setting of a peer in a round, to pick the best for an M
TRIAL_ROUNDS = 3
WARM_SECONDS = 0.3  # long beside the clock ticks in which threads' times are counted


class Peer(Contestant):
    """A library with threads of its own, called from one thread; they are pinned as ours are.

    Its weights are on huge pages too. `_settings` offers the ways to call it with some M; the
    fastest one for that M takes part, and one that raises does not. `formats` names the weight
    formats it multiplies, `num_forms` says how often it holds the weights, its own packed forms
    among them.
    """

    formats: ClassVar[tuple[str, ...]]
    num_forms: ClassVar[int]

    def __init__(self, problem: Problem, cpus: Sequence[int]) -> None:
        super().__init__(problem)
        shape, item = _plain_weights(problem)
        self._arena = Arena(math.prod(shape) * item.itemsize, self.name)
        self._weights = self._arena.array(shape, item)
        if problem.format.is_quantized:
            fill_random_bytes(self._weights.view(np.uint8))
        else:
            fill_random(self._weights)
        self.trials: dict[str, float] = {}  # seconds per call of each setting, roughly
        self._call: Callable[[int], object] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        try:
            self.is_pinned: bool = self._thread.submit(self._start, list(cpus)).result()
        except Exception as error:  # libraries raise what they like, mostly RuntimeError
            self._thread.shutdown()
            raise RefusedError(error) from error

    @classmethod
    def needed_bytes(cls, problem: Problem) -> int:
        """Memory for the weights of `problem`, at most."""
        shape, item = _plain_weights(problem)
        return math.prod(shape) * item.itemsize * cls.num_forms

    def prepare(self, num_rows: int) -> float:
        return self._thread.submit(self._choose, num_rows).result()

    def seconds(self, num_calls: int) -> float:
        return self._thread.submit(self._timed, num_calls).result()

    def close(self) -> None:
        self._call = None
        del self._weights
        self._thread.shutdown()
        self._arena.close()

    @abstractmethod
    def _start(self, cpus: list[int]) -> bool:
        """Set up the library on the calling thread; whether its threads could be pinned."""

    @abstractmethod
    def _settings(self, num_rows: int) -> Iterator[tuple[str, Callable[[int], object]]]:
        """(name, call with a copy's index) of each way to multiply `num_rows` rows."""

    def _timed(self, num_calls: int) -> float:
        assert self._call is not None
        started = time.perf_counter()
        for _ in range(num_calls):
            self._call(self._next_copy())
        return time.perf_counter() - started

    def _choose(self, num_rows: int) -> float:
        """Let the settings take turns, and keep the fastest; its seconds per call.

        In every round they are compared with the fastest of that round.
        """
        self._call = None  # its packed weights need not outlive it
        calls = self._working(num_rows)
        rounds = [self._round(calls, dict.fromkeys(calls, 1))]
        if min(rounds[0].values()) < SLOW_SECONDS:
            once = self._round(calls, dict.fromkeys(calls, 1))  # the first one was cold
            num_calls = {name: max(1, round(TRIAL_SECONDS / t)) for name, t in once.items()}
            rounds = [self._round(calls, num_calls) for _ in range(TRIAL_ROUNDS)]
        slowness = {
            name: statistics.median(times[name] / min(times.values()) for times in rounds)
            for name in calls
        }
        self.trials = {name: statistics.median(t[name] for t in rounds) for name in calls}
        self.setting = min(slowness, key=lambda name: slowness[name])
        self._call = calls[self.setting]
        return self.trials[self.setting]

    def _working(self, num_rows: int) -> dict[str, Callable[[int], object]]:
        """The settings whose first call raises nothing; RefusedError if there is none."""
        calls = {}
        refusal: Exception | None = None
        settings = self._settings(num_rows)
        while True:
            try:
                name, call = next(settings)
                call(0)
                calls[name] = call
            except StopIteration:
                break
            except Exception as error:
                refusal = error
        if not calls:
            assert refusal is not None
            raise RefusedError(refusal) from refusal
        return calls

    def _round(
        self, calls: dict[str, Callable[[int], object]], num_calls: dict[str, int]
    ) -> dict[str, float]:
        """Seconds per call of every setting."""
        seconds = {}
        for name, self._call in calls.items():
            seconds[name] = self._timed(num_calls[name]) / num_calls[name]
        return seconds


def _plain_weights(problem: Problem) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    """Shape and type of the copies of a weight matrix before a peer packs them."""
    layout = problem.layout
    item = np.dtype(np.int8) if problem.format.is_quantized else layout.value_dtype
    return (problem.num_copies, layout.n, layout.k), item


def pin_workers(cpus: Sequence[int], work: Callable[[], object]) -> bool:
    """Pin the threads that `work` keeps busy, the calling one first, one to each CPU.

    Libraries do not say which threads are theirs, but the kernel says which ones worked. False, and
    no thread is pinned, where they are not as many as the CPUs.
    """
    process, caller = psutil.Process(), threading.get_native_id()

    def times() -> dict[int, float]:
        return {t.id: t.user_time + t.system_time for t in process.threads()}

    work()
    before, end = times(), time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < end:
        work()
    spent = {tid: seconds - before.get(tid, 0.0) for tid, seconds in times().items()}
    busy = {tid for tid, seconds in spent.items() if seconds > max(spent.values()) / 3} | {caller}
    if len(busy) != len(cpus):
        return False
    for cpu, tid in zip(cpus, [caller, *sorted(busy - {caller})], strict=True):
        os.sched_setaffinity(tid, {cpu})
    return True
