"""Trials are compiled, run and checked on real kernels, small ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import schedules.tiles.trial
import schedules.tiles.trials
from codegen.gemm.nest import Gemm
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile, WeightFormat
from platforms.isa import select_isa
from schedules.tiles.trial import Trial, slice_of
from schedules.tiles.trials import TrialRunner, is_right

ISA = select_isa(forced="auto")
FORMATS = [
    WeightFormat("bfloat16"),
    WeightFormat("int4", "int8", 32, "float16"),
]
TILE = GemmTile(3, 0, 2, 0, 1)


def layout_of(weights: WeightFormat = FORMATS[0], n: int = 4096, k: int = 256) -> PanelLayout:
    return PanelLayout(n, k, weights, 2 * ISA.lanes, ISA.lanes)


@pytest.mark.parametrize("weights", FORMATS, ids=lambda w: w.name)
def test_prepared_trials_take_time_and_are_compiled_once(
    weights: WeightFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules.tiles.trials, "MIN_WEIGHTS_BYTES", 1 << 16)
    monkeypatch.setattr(schedules.tiles.trials, "SAMPLE_SECONDS", 1e-6)
    layout = layout_of(weights, n=4 * ISA.lanes)
    trial = Trial(ISA.name, layout, 4, (0,), TILE)
    for _ in range(2):
        runner = TrialRunner(0, tmp_path)
        runner.prepare([trial, trial.resident(), trial])
        assert runner.seconds(trial) > 0
        assert runner.seconds(trial.resident()) > 0
        runner.close()
        assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("weights", FORMATS, ids=lambda w: w.name)
def test_the_generator_passes_its_check(weights: WeightFormat) -> None:
    assert is_right(ISA, layout_of(weights), TILE)
    assert is_right(ISA, layout_of(weights), replace(TILE, order="curve", chains=2))


def test_a_wrong_kernel_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    emit = Gemm.emit
    monkeypatch.setattr(
        Gemm, "emit", lambda self, core, cores, rows: emit(self, core, cores, rows - 1)
    )
    assert not is_right(ISA, layout_of(), TILE)


@pytest.mark.parametrize(
    ("rows", "num_cores", "panels"),
    [
        (1, 2, 32),  # 16 for each core
        (1, 4, 64),
        (512, 2, 22),  # as many as the time of one call allows
        (4096, 2, 8),  # four at least
    ],
)
def test_a_slice_is_cut_to_some_panels_for_each_core(
    rows: int, num_cores: int, panels: int
) -> None:
    layout = PanelLayout(1 << 16, 2048, FORMATS[0], 64, 16)
    assert slice_of(layout, rows, num_cores) == replace(layout, n=panels * 64)


def test_a_small_matrix_is_its_own_slice() -> None:
    layout = layout_of(n=3 * ISA.lanes + 1)
    assert slice_of(layout, 1, 2) == layout


@pytest.mark.parametrize("weights", FORMATS, ids=lambda w: w.name)
def test_a_resident_trial_is_one_panel_of_whole_groups_on_one_core(weights: WeightFormat) -> None:
    trial = Trial(ISA.name, layout_of(weights, k=1 << 16), 4, (5, 6), GemmTile(4, kc=1024))
    small = trial.resident()
    assert small.cpus == (5,)
    assert small.layout.n == small.layout.panel
    assert 0 < small.layout.k <= 1024
    assert small.layout.k % (weights.group or small.layout.kr) == 0
    assert small.layout.nbytes <= 2 * schedules.tiles.trial.RESIDENT_BYTES
    assert small.tile == GemmTile(4)
