"""The switch benchmark on a tiny model: every figure is there, and is made of what it should be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench.barriers
import bench.hand_over
import bench.switch
from bench.switch import Call, executor_us, summary, whole_us
from codegen.spec import Phase
from sandwich.cli import main
from sandwich.executor.base import NativeTime

TINY = ["bench", "switch", "--random", "tiny"]
CPU = min(os.sched_getaffinity(0))
P, D = Phase.PREFILL, Phase.DECODE


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.hand_over, "NUM_HAND_OVERS", 3)
    monkeypatch.setattr(bench.barriers, "NUM_SAMPLES", 3)


@pytest.fixture(autouse=True)
def same_affinity() -> Iterator[None]:
    """The thread that drives the engine is pinned; no other test is to inherit that."""
    allowed = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, allowed)


def test_every_figure_is_written_down(tmp_path: Path) -> None:
    file = tmp_path / "switch.json"
    flags = ["--switches", "3", "--prompt", "5", "--decode-cpus", str(CPU), "--dtype", "fp32"]
    assert main([*TINY, *flags, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert {"commit", "seed", "machine"} <= result.keys()
    assert result["plan"]["decode"]["cpus"] == [CPU]
    assert 0 < result["switch_us"]["median"] <= result["switch_us"]["p99"]
    for times in (result["switch_us"], result["stay_us"]["prefill"], result["stay_us"]["decode"]):
        assert 0 < times["executor"]["median"] < times["median"]
    assert result["hand_over_us"].keys() == {"there", "back"}
    assert result["barrier_us"]["decode"] == {"sandwich": 0.0, "tvm": 0.0}  # one core
    assert result["barrier_us"]["prefill"].keys() == {"sandwich", "tvm"}


def call(phase: Phase, entered: float, started: float, ended: float, left: float) -> Call:
    return Call(phase, entered, NativeTime(started, ended), left)


def test_a_switch_is_from_native_return_to_native_entry_and_the_executor_is_part_of_it() -> None:
    before, after = call(D, 0.0, 1.0, 5.0, 5.25), call(P, 7.0, 7.5, 9.0, 9.5)
    assert whole_us((before, after)) == 2.5e6
    assert executor_us((before, after)) == 0.75e6


def test_switches_and_stays_are_told_apart_and_the_first_ones_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench.switch, "NUM_WARMUPS", 1)
    gaps = {(P, D): [100, 1], (D, P): [100, 2], (D, D): [100, 3], (P, P): [100, 4]}
    calls, now = [call(P, 0, 0, 0, 0)], 0.0
    for phase in (D, P, D, P, P, P, D, D, D):
        now += gaps[calls[-1].phase, phase].pop(0) if gaps[calls[-1].phase, phase] else 1
        calls.append(call(phase, now, now, now, now))
    result = summary(calls)
    assert result["switch_us"]["to_decode"]["median"] == 1e6
    assert result["switch_us"]["to_prefill"]["median"] == 2e6
    assert result["stay_us"]["decode"]["median"] == 3e6
    assert result["stay_us"]["prefill"]["median"] == 4e6
    assert result["switch_us"]["executor"]["p99"] == 0.0
    assert result["added_us"] == {"whole": 0.5e6 * (1 + 2 - 3 - 4), "executor": 0.0}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--switches", "0"], "--switches is 0; it is a whole number from 1 up"),
        (["--prompt", "0"], "--prompt is 0"),
        (["smollm2"], "not both"),
        (["--executor", "null", "--switches", "1"], "makes no native calls"),
    ],
)
def test_a_mistake_is_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, *flags]) != 0
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
