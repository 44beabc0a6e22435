"""The meters of the topology run on this machine, with small buffers, and give sane figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from platforms.probe import probe
from schedules import topology_meters
from schedules.topology_meters import (
    barrier_times,
    line_pairs,
    line_times,
    measured_sets,
    peak_rates,
    read_rates,
)
from schedules.topotree import TopoTree

MACHINE = probe()
TREE = TopoTree.of(MACHINE)
SETS = measured_sets(TREE)[:2]


@pytest.fixture(autouse=True)
def little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"READ_BYTES": 1 << 20, "BARRIER_TURNS": 10, "PEAK_TURNS": 10}.items():
        monkeypatch.setattr(topology_meters, name, value)
    monkeypatch.setattr(topology_meters, "NUM_SAMPLES", 2)
    monkeypatch.setattr(topology_meters, "last_level_cache_bytes", lambda machine: 0)


class Tracker:
    """Goes through the items and remembers what was announced."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def __call__(self, items: Sequence[Any], what: str) -> Iterable[Any]:
        self.seen.append((what, len(items)))
        return items


def test_every_set_of_cores_is_measured_and_announced() -> None:
    track = Tracker()
    reads = read_rates(MACHINE, SETS, track)
    peaks = peak_rates(MACHINE, SETS, ["float32"], track)
    assert [read.cores for read in reads] == [cores.shape for cores in SETS]
    assert [peak.num_cores for peak in peaks] == [len(cores.cpus) for cores in SETS]
    assert min(read.gbps for read in reads) > 0
    assert min(peak.gflops for peak in peaks) > 0
    assert track.seen == [("read bandwidth", len(SETS)), ("float32 arithmetic", len(SETS))]


@pytest.mark.skipif(len(TREE.cpus) < 2, reason="needs two cores")
def test_cores_meet_at_barriers_and_pass_lines() -> None:
    track = Tracker()
    barriers = barrier_times(MACHINE, SETS, track)
    assert [barrier.cores for barrier in barriers] == [SETS[1].shape]  # one core waits for nobody
    assert barriers[0].us > 0
    cpus = TREE.cpus[:2]
    lines = line_times(MACHINE, cpus, track)
    assert [(line.first, line.second) for line in lines] == line_pairs(cpus)
    assert lines[0].ns > 1
