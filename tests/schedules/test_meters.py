"""Meters take samples of the cores they were given and let go of their threads."""

import threading
from contextlib import closing

import pytest

from platforms.isa import isa_row, select_isa
from platforms.probe import probe
from schedules.meters import CLOCK_MARGIN, PeakMeter, ReadMeter

GHZ = 2.0
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


def test_a_peak_is_held_to_what_the_clock_allows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    isa = isa_row("avx2")
    monkeypatch.setattr("schedules.meters.PeakProbe.multiply", lambda *_: None)
    monkeypatch.setattr(PeakMeter, "_sampled_ghz", lambda _: GHZ)
    meter = PeakMeter(isa, "float32", CPUS)
    with closing(meter):
        fused_per_cycle = 2
        most = CLOCK_MARGIN * GHZ * len(CPUS) * 2 * isa.lanes * fused_per_cycle
        assert meter.sample() == pytest.approx(most)
    assert "please report" in caplog.text
