"""What some cores can do at most, measured: read bandwidth and the register-only peak.

A machine that others use is never twice the same, so a meter takes single samples, to be
interleaved with what they are compared with.
"""

from __future__ import annotations

import logging
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from codegen.compile import pin_pool
from codegen.probes.peaks import CLOCK_CYCLES, ClockProbe, PeakProbe, ReadProbe
from platforms.isa import IsaRow
from platforms.machine import Machine
from platforms.memory import Arena

# Samples of some fifty milliseconds, as long as a decode step of a model that matters: what
# interrupts the one interrupts the other as often.
READ_BYTES = 512 << 20
READ_PASSES = 4
PEAK_TURNS = 4_000_000
CLOCK_TURNS = 16_000  # a third of a millisecond
CLOCK_SAMPLES = 8  # of which the best counts: interruptions only make a clock look slow
CLOCK_MARGIN = 1.25  # other cores may be clocked higher than the one that is sampled
CACHES_PER_BUFFER = 8  # so that what a cache holds does not count

_log = logging.getLogger(__name__)


def last_level_cache_bytes(machine: Machine) -> int:
    """All instances of the last level together; 0 if the machine hides its caches."""
    last = max((cache.level for cache in machine.caches), default=0)
    return sum((c.nbytes or 0) * len(c.instances) for c in machine.caches if c.level == last)


class Meter(ABC):
    """Samples of one limit, in G-units per second, as they came.

    Owns a pinned thread with a pool of one worker per CPU until `close`.
    """

    def __init__(self, cpus: Sequence[int]) -> None:
        self.samples: list[float] = []
        # A pool belongs to the thread that made it, so every call goes through this one thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._do(lambda: pin_pool(list(cpus)))

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return max(self.samples)

    def sample(self) -> float:
        """Measure once; the result, which is kept in `samples` too."""
        self.samples.append(self._measure())
        return self.samples[-1]

    @abstractmethod
    def _measure(self) -> float: ...

    def close(self) -> None:
        self._thread.shutdown()

    def _do(self, function: Callable[[], None]) -> float:
        """Run on the pinned thread; the seconds it took there."""

        def timed() -> float:
            started = time.perf_counter()
            function()
            return time.perf_counter() - started

        return self._thread.submit(timed).result()


class ReadMeter(Meter):
    """Read bandwidth in GB/s, from memory that dwarfs the caches (`llc_bytes`, all together)."""

    def __init__(
        self,
        isa: IsaRow,
        cpus: Sequence[int],
        llc_bytes: int,
        nbytes: int = READ_BYTES,
        home: Sequence[int] = (),
    ) -> None:
        """home: as many CPUs that touch, and so place, the memory; by default the readers do."""
        super().__init__(home or cpus)
        step = ReadProbe.words_per_turn(isa, len(cpus))
        num_words = max(nbytes, CACHES_PER_BUFFER * llc_bytes) // 4 // step * step
        self._probe = ReadProbe(isa, len(cpus), num_words)
        self._arena = Arena(4 * num_words + (1 << 16), "limits")
        self._words = self._arena.array((num_words,), np.int32)
        self._sums = self._arena.array(self._probe.sums_shape, np.int32)
        self._do(lambda: self._probe.fill(self._words))
        if home:
            self._do(lambda: pin_pool(list(cpus)))

    def _measure(self) -> float:
        return READ_PASSES * self._words.nbytes / self._do(self._read) / 1e9

    def _read(self) -> None:
        for _ in range(READ_PASSES):
            self._probe.read(self._words, self._sums)

    def close(self) -> None:
        super().close()
        self._arena.close()


class PeakMeter(Meter):
    """Multiply-adds out of registers in GFLOP/s, as kernels for `dtype` do them on `isa`.

    No sample is above what the instruction set and the clock allow: a probe that a compiler has
    found a short cut for is cut to that, with a warning.
    """

    def __init__(
        self, isa: IsaRow, dtype: str, cpus: Sequence[int], num_turns: int = PEAK_TURNS
    ) -> None:
        super().__init__(cpus)
        self.dtype = dtype
        self._probe = PeakProbe(isa, dtype, len(cpus))
        self._clock = ClockProbe(isa)
        self._ghz = 0.0
        arena = Arena(1 << 16, "operands")
        self._operands = arena.array(self._probe.operand_shape, np.int32)
        self._turns = arena.array((1,), np.int32)
        self._clock_turns = arena.array((1,), np.int32)
        self._link = arena.array((1,), np.int32)
        self._sums = arena.array(self._probe.sums_shape, self._probe.sums_dtype)
        self._probe.write_operands(self._operands)
        self._turns[0] = num_turns
        self._clock_turns[0] = CLOCK_TURNS
        self._flops = num_turns * self._probe.flops_per_turn

    def _measure(self) -> float:
        gflops = self._flops / self._do(self._multiply) / 1e9
        if gflops <= self._most_gflops():
            return gflops
        for _ in range(CLOCK_SAMPLES):
            self._ghz = max(self._ghz, self._sampled_ghz())
        most = self._most_gflops()
        if gflops <= most:
            return gflops
        _log.warning(
            "the probe of %s shows %.0f GFLOP/s, more than the %.0f that %d cores at %.2f GHz can "
            "reach: it is taken for that; please report it",
            *(self.dtype, gflops, most, len(self._sums), self._ghz),
        )
        return most

    def _multiply(self) -> None:
        self._probe.multiply(self._operands, self._turns, self._sums)

    def _most_gflops(self) -> float:
        """The bound that follows from the instruction set, and from the best clock seen so far."""
        return CLOCK_MARGIN * self._ghz * self._probe.most_flops_per_cycle

    def _sampled_ghz(self) -> float:
        seconds = self._do(lambda: self._clock.wait(self._clock_turns, self._link))
        return CLOCK_CYCLES * CLOCK_TURNS / seconds / 1e9
