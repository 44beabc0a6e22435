"""Measures how the cores of a machine share memory, barriers and cache lines, in seconds.

Every set of cores is a plain shape (CoreSet) of a TopoTree, so that the same measurements make
sense on two cores and on 128. Neighbours on a shared machine only ever slow a sample down, so the
best of several counts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from threading import Barrier
from typing import Any, Final

import numpy as np

from codegen.probes.barriers import BarrierProbe
from codegen.probes.lines import LINE_WORDS, PingPongProbe
from platforms.isa import IsaRow
from platforms.machine import Machine
from platforms.memory import Arena
from schedules.calibration import BarrierTime, CoreSet, LineTime, PeakRate, ReadRate
from schedules.meters import Meter, PeakMeter, ReadMeter, last_level_cache_bytes
from schedules.topotree import Level, TopoTree

CORE_COUNTS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)  # of an LLC group
ALL_PAIRS: Final = 32  # cores up to which every pair is measured
NUM_SAMPLES: Final = 5
READ_BYTES: Final = 256 << 20
BARRIER_TURNS: Final = 20_000  # beside which the launch of the pool is nothing
LINE_TURNS: Final = 500
PEAK_TURNS: Final = 1_000_000

Track = Callable[[Sequence[Any], str], Iterable[Any]]  # goes through items and shows how far it is


@dataclass(frozen=True)
class MeasuredSet:
    """Cores to measure together. home: the cores whose memory they read, if not their own."""

    shape: CoreSet
    cpus: tuple[int, ...]
    home: tuple[int, ...] = ()


def measured_sets(tree: TopoTree) -> list[MeasuredSet]:
    """What is measured: cores of the first LLC group, its node's groups, all nodes, and the first
    node reading from the second. Groups that have lost a core to the server are left out.
    """
    nodes = [[llc.cpus for llc in node.at(Level.GROUP)] for node in tree.at(Level.NODE)]
    size = statistics.mode(len(cpus) for node in nodes for cpus in node)
    nodes = [[cpus[:size] for cpus in node if len(cpus) >= size] for node in nodes]
    nodes = [node for node in nodes if node]
    num_groups = min(map(len, nodes))

    def cpus(cores: int, groups: int, of: Sequence[list[tuple[int, ...]]]) -> tuple[int, ...]:
        return tuple(cpu for node in of for group in node[:groups] for cpu in group[:cores])

    counts = sorted({n for n in CORE_COUNTS if n < size} | {size})
    sets = [MeasuredSet(CoreSet(n, 1, 1), cpus(n, 1, nodes[:1])) for n in counts]
    groups = sorted({2**i for i in range(1, 8) if 2**i < num_groups} | {num_groups} - {1})
    sets += [MeasuredSet(CoreSet(size, n, 1), cpus(size, n, nodes[:1])) for n in groups]
    if len(nodes) > 1:
        everywhere = CoreSet(size, num_groups, len(nodes))
        near, far = (cpus(size, num_groups, [node]) for node in nodes[:2])
        sets.append(MeasuredSet(everywhere, cpus(size, num_groups, nodes)))
        sets.append(MeasuredSet(CoreSet(size, num_groups, 1), near, far))
    return sets


def line_pairs(cpus: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs whose line time is measured: all of up to ALL_PAIRS cores, else those that are a power
    of two apart in the list, which chains every core to its neighbours near and far.
    """
    if len(cpus) <= ALL_PAIRS:
        return list(combinations(sorted(cpus), 2))
    steps = [1 << i for i in range(len(cpus).bit_length())] + [3]
    pairs = {
        (min(pair), max(pair)) for step in steps for pair in zip(cpus, cpus[step:], strict=False)
    }
    return sorted(pairs)


def read_rates(machine: Machine, sets: Sequence[MeasuredSet], track: Track) -> list[ReadRate]:
    """Read bandwidth of every set."""
    nbytes = last_level_cache_bytes(machine)
    rates = []
    for cores in track(sets, "read bandwidth"):
        meter = ReadMeter(machine.isa_row, cores.cpus, nbytes, READ_BYTES, cores.home)
        rates.append(ReadRate(cores.shape, bool(cores.home), _best(meter)))
    return rates


def peak_rates(
    machine: Machine, sets: Sequence[MeasuredSet], dtypes: Sequence[str], track: Track
) -> list[PeakRate]:
    """Arithmetic of every set of local cores, for every dtype."""
    local = [cores for cores in sets if not cores.home]
    return [
        PeakRate(
            dtype,
            len(cores.cpus),
            _best(PeakMeter(machine.isa_row, dtype, cores.cpus, PEAK_TURNS)),
        )
        for dtype in dtypes
        for cores in track(local, f"{dtype} arithmetic")
    ]


def _best(meter: Meter) -> float:
    with closing(meter):
        return max(meter.sample() for _ in range(NUM_SAMPLES))


class BarrierMeter(Meter):
    """Barriers per microsecond of a set of cores."""

    def __init__(self, isa: IsaRow, cores: MeasuredSet) -> None:
        super().__init__(cores.cpus)
        shape = cores.shape
        groups = ((shape.cores_per_group,) * shape.groups_per_node,) * shape.num_nodes
        self._probe = BarrierProbe(isa, groups)
        spec = self._probe.state_spec
        self._state = Arena(spec.arena_nbytes, "barrier").array(spec.shape, spec.dtype)

    def _measure(self) -> float:
        return 1e-6 * BARRIER_TURNS / self._do(self._wait)

    def _wait(self) -> None:
        self._probe.run(self._state, BARRIER_TURNS)


def barrier_times(machine: Machine, sets: Sequence[MeasuredSet], track: Track) -> list[BarrierTime]:
    """What a barrier of every set of several local cores takes."""
    several = [cores for cores in sets if not cores.home and len(cores.cpus) > 1]
    return [
        BarrierTime(cores.shape, 1 / _best(BarrierMeter(machine.isa_row, cores)))
        for cores in track(several, "barriers")
    ]


def line_times(machine: Machine, cpus: Sequence[int], track: Track) -> list[LineTime]:
    """How long a cache line takes from core to core, for `line_pairs(cpus)`."""
    probe = PingPongProbe(machine.isa_row)
    pairs = line_pairs(cpus)
    with ThreadPoolExecutor(2, thread_name_prefix="lines") as threads:
        return [
            LineTime(pair[0], pair[1], min(_rounds(threads, probe, pair)))
            for pair in track(pairs, "cache lines")
        ]


def _rounds(
    threads: ThreadPoolExecutor, probe: PingPongProbe, pair: tuple[int, int]
) -> Iterator[float]:
    """Nanoseconds of one way, for several rounds of one pair."""
    line, *played = Arena(1 << 12, "line").array((3, LINE_WORDS), np.int32)
    start = Barrier(2)

    def play(side: int) -> float:
        os.sched_setaffinity(0, {pair[side]})
        start.wait()
        began = time.perf_counter()
        probe.play(side, LINE_TURNS, line, played[side])
        return time.perf_counter() - began

    for _ in range(NUM_SAMPLES):
        line[:] = 0
        seconds = min(threads.map(play, (0, 1)))  # the side that came last waited for nobody
        assert min(side[0] for side in played) == LINE_TURNS, f"CPUs {pair} lost each other"
        yield 1e9 * seconds / (2 * LINE_TURNS)


__all__ = [
    "MeasuredSet",
    "Track",
    "barrier_times",
    "line_pairs",
    "line_times",
    "measured_sets",
    "peak_rates",
    "read_rates",
]
