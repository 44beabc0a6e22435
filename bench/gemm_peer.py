"""What the other libraries of the GEMM benchmark have in common: threads, weights, trials.

Knows nothing of our own kernels, of tables or of limits, nor of any one library.
"""

from __future__ import annotations

import math
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import psutil  # type: ignore[import-untyped]

from bench.gemm_contest import Contestant, Problem, fill_random, fill_random_bytes
from platforms.memory import Arena

TRIAL_SECONDS = 0.03  # of each setting of a peer, to pick the best for an M
WARM_SECONDS = 0.3  # long beside the clock ticks in which threads' times are counted


class Peer(Contestant):
    """A library with threads of its own, called from one thread; they are pinned as ours are.

    Its weights are on huge pages too. `_settings` offers the ways to call it with some M; the
    fastest one for that M takes part. `formats` names the weight formats it multiplies.
    """

    formats: ClassVar[tuple[str, ...]]

    def __init__(self, problem: Problem, cpus: Sequence[int]) -> None:
        super().__init__(problem)
        layout = problem.layout
        item = np.dtype(np.int8) if problem.format.is_quantized else layout.value_dtype
        shape = (problem.num_copies, layout.n, layout.k)
        self._arena = Arena(math.prod(shape) * item.itemsize, self.name)
        self._weights = self._arena.array(shape, item)
        if problem.format.is_quantized:
            fill_random_bytes(self._weights.view(np.uint8))
        else:
            fill_random(self._weights)
        self.trials: dict[str, float] = {}  # seconds per call of each setting, roughly
        self._call: Callable[[int], object] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.name)
        self.is_pinned: bool = self._thread.submit(self._start, list(cpus)).result()

    def prepare(self, num_rows: int) -> None:
        self._thread.submit(self._choose, num_rows).result()

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

    def _choose(self, num_rows: int) -> None:
        self._call = None  # its packed weights need not outlive it
        self.trials = {}
        calls = {}
        for setting, call in self._settings(num_rows):
            self._call = call
            once = min(self._timed(1), self._timed(1))
            num_calls = math.ceil(TRIAL_SECONDS / once)
            seconds = self._timed(num_calls) / num_calls if num_calls > 1 else once
            self.trials[setting], calls[setting] = seconds, call
        self.setting = min(self.trials, key=lambda name: self.trials[name])
        self._call = calls[self.setting]


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
