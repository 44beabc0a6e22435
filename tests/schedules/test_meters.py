"""Meters take samples of the cores they were given and let go of their threads."""

import threading

import pytest

from platforms.isa import select_isa
from platforms.probe import probe
from schedules.meters import PeakMeter, ReadMeter

CPUS = probe().usable_cpus()


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name.startswith("limits")}


@pytest.mark.parametrize("cpus", [CPUS[:1], CPUS])
def test_meters_count_what_they_sample(cpus: tuple[int, ...]) -> None:
    meters = (
        ReadMeter(select_isa(), cpus, llc_bytes=0, nbytes=1 << 20),
        PeakMeter(select_isa(), "bfloat16", cpus, num_turns=10),
    )
    for meter in meters:
        for _ in range(3):
            meter.sample()
        assert len(meter.samples) == 3
        assert 0 < min(meter.samples) <= meter.median <= meter.best
        assert threads()
    for meter in meters:
        meter.close()
    assert not threads()
