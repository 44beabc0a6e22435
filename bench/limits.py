"""What these cores can do at most, measured: read bandwidth and the register-only peak.

A machine that others use is never twice the same, so a LimitMeter takes single samples, to be
interleaved with what they are compared with. Knows nothing of models or engines.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from codegen.compile import pin_pool
from codegen.limits import LimitProbes
from platforms.isa import IsaRow
from platforms.memory import Arena

# Samples of ten milliseconds or so: long beside the start of the threads, short beside the noise.
READ_BYTES = 512 << 20
PEAK_TURNS = 1_000_000
CACHES_PER_BUFFER = 8  # so that what a cache holds does not count


@dataclass
class Samples:
    """Rates of one limit, as they came."""

    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def best(self) -> float:
        return max(self.values)


class LimitMeter:
    """Samples the limits of `cpus`, one thread on each, with kernels for `isa` and `dtype`.

    `llc_bytes` is the size of the last-level caches together. Every sample is also kept in
    `read_gbps` or `peak_gflops`. Owns a thread and a large buffer until `close`.
    """

    def __init__(self, isa: IsaRow, dtype: str, cpus: Sequence[int], llc_bytes: int) -> None:
        self.read_gbps = Samples()
        self.peak_gflops = Samples()
        step = LimitProbes.words_per_turn(isa, len(cpus))
        num_words = max(READ_BYTES, CACHES_PER_BUFFER * llc_bytes) // 4 // step * step
        self._arena = Arena(4 * num_words + (1 << 16), "limits")
        self._words = self._arena.array((num_words,), np.int32)
        # The cores' thread pool belongs to the thread that first called it, so all calls are its.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._thread.submit(self._prepare, isa, dtype, tuple(cpus)).result()

    def sample_read(self) -> float:
        """One pass over the buffer, in GB/s."""
        rate = self._words.nbytes / 1e9 / self._timed(self._read)
        self.read_gbps.values.append(rate)
        return rate

    def sample_peak(self) -> float:
        """A short run of multiply-adds out of registers, in GFLOP/s."""
        flops = int(self._turns[0]) * self._probes.flops_per_turn
        rate = flops / 1e9 / self._timed(self._peak)
        self.peak_gflops.values.append(rate)
        return rate

    def close(self) -> None:
        """Let go of the thread and the buffer."""
        self._thread.shutdown()
        self._arena.close()

    def _prepare(self, isa: IsaRow, dtype: str, cpus: tuple[int, ...]) -> None:
        os.sched_setaffinity(0, {cpus[0]})
        pin_pool(list(cpus))
        self._probes = LimitProbes(isa, dtype, len(cpus), self._words.size)
        self._operands = self._arena.array(self._probes.operand_shape, np.int32)
        self._turns = self._arena.array((1,), np.int32)
        self._sums = self._arena.array(self._probes.result_shape, np.int32)
        self._results = self._arena.array(self._probes.result_shape, np.float32)
        self._probes.write_operands(self._operands)
        self._probes.fill(self._words)
        self._turns[0] = PEAK_TURNS

    def _read(self) -> None:
        self._probes.read(self._words, self._sums)

    def _peak(self) -> None:
        self._probes.peak(self._operands, self._turns, self._results)

    def _timed(self, run: Callable[[], None]) -> float:
        return self._thread.submit(self._timed_here, run).result()

    @staticmethod
    def _timed_here(run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
