"""`sandwich probe --measure` keeps what it finds, shows it, and plans are made with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codegen.spec import Phase, WeightFormat
from platforms.machine import Machine
from platforms.machines import load_machine
from platforms.probe import probe
from platforms.sysfs import format_cpu_list
from sandwich.config import EngineConfig
from sandwich.errors import MemoryLimitError
from sandwich.models.presets import preset
from sandwich.startup.plans import make_plans
from schedules.calibration import (
    Calibration,
    CoreSet,
    LineTime,
    ProgramRates,
    ReadRate,
    load_calibration,
    save_calibration,
)
from schedules.cost import StepCase
from schedules.rates import estimated_rates
from schedules.records import current_generator
from schedules.topotree import Candidate

Run = Callable[..., Any]


def measured(machine: Machine, lines: tuple[LineTime, ...] = ()) -> Calibration:
    """A calibration with a bandwidth that no estimate has."""
    kernels = estimated_rates(machine, WeightFormat("bfloat16")).decode
    return Calibration(
        fingerprint=machine.fingerprint,
        isa=machine.isa,
        generator=current_generator(),
        cpus=machine.usable_cpus(),
        reads=(ReadRate(CoreSet(1, 1, 1), False, 7.5),),
        barriers=(),
        peaks=(),
        lines=lines,
        programs=tuple(ProgramRates("bfloat16", p.value, kernels, 1.0) for p in Phase),
    )


def test_what_is_measured_is_kept_and_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = probe()
    found = measured(machine)
    monkeypatch.setenv("SANDWICH_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("sandwich.startup.calibrate.calibrate", lambda *arguments: found)
    record = json.loads(run("probe", "--measure", "--json").out)
    assert record["calibration"]["reads"][0]["gbps"] == 7.5
    assert load_calibration(tmp_path, machine) == found
    assert Machine.from_json(json.dumps(record)).fingerprint == machine.fingerprint
    assert "1 cores 7.5" in run("probe").out
    assert json.loads(run("probe", "--json").out)["calibration"] == record["calibration"]


def test_another_machine_cannot_be_measured(run: Run, tmp_path: Path) -> None:
    _, err = run("probe", "--measure", "--root", str(tmp_path), code=2)
    assert "--measure runs on this machine" in err


def test_a_folder_without_a_recorded_machine_is_refused(run: Run, tmp_path: Path) -> None:
    _, err = run("probe", "--root", str(tmp_path), code=2)
    assert "no proc/cpuinfo" in err


def test_plans_are_made_with_what_was_measured(tmp_path: Path) -> None:
    machine = load_machine("epyc-guest")
    config = EngineConfig(model="llama-3.2-1b", cache_dir=tmp_path)
    _, _, before = make_plans(config, machine, preset("llama-3.2-1b"))
    save_calibration(tmp_path, machine, measured(machine))
    _, _, after = make_plans(config, machine, preset("llama-3.2-1b"))
    assert not before.rates.is_measured
    assert after.rates.is_measured
    assert after.decode.chosen.predicted_us > 4 * before.decode.chosen.predicted_us
    assert after.render(machine.topology)[1].startswith("measured ")


def test_groups_that_only_line_times_show_are_candidates(tmp_path: Path) -> None:
    machine = load_machine("kubernetes-pod")  # five cores of one LLC group, as far as sysfs knows
    cpus = machine.usable_cpus()
    near = {(a, b) for part in (cpus[:2], cpus[2:]) for a in part for b in part if a < b}
    lines = tuple(
        LineTime(a, b, 20.0 if (a, b) in near else 90.0) for a in cpus for b in cpus if a < b
    )
    config = EngineConfig(model="tiny", cache_dir=tmp_path)
    found = [make_plans(config, machine, preset("tiny"))[2]]
    save_calibration(tmp_path, machine, measured(machine, lines))
    found.append(make_plans(config, machine, preset("tiny"))[2])
    groups = [result.prefill.ranked[0].candidate.groups for result in found]
    assert len(groups[0]) == 1
    everything = next(
        p.candidate for p in found[1].prefill.ranked if len(p.candidate.cpus) == len(cpus)
    )
    assert everything.groups == (cpus[:2], cpus[2:])
    assert found[1].hidden_groups == everything.groups
    named = replace(config, cpu_bind=format_cpu_list(cpus))
    _, _, result = make_plans(named, machine, preset("tiny"))
    assert result.decode.chosen.candidate.groups == everything.groups


def test_the_tree_and_the_picture_show_groups_that_only_line_times_show(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = load_machine("kubernetes-pod")
    cpus = machine.usable_cpus()
    lines = tuple(LineTime(a, b, 90.0 if a < 4 <= b else 20.0) for a in cpus for b in cpus if a < b)
    monkeypatch.setenv("SANDWICH_CACHE_DIR", str(tmp_path))
    save_calibration(tmp_path, machine, measured(machine, lines))
    picture = tmp_path / "plan.svg"
    flags = ("--simulate", "kubernetes-pod", "--draw", str(picture))
    tree = run("plan", "tiny", *flags).out.splitlines()[-2:]
    assert [line.split()[2] for line in tree] == ["2-3", "4-6"]
    assert "LLC: 2 cores" in picture.read_text()


class Timer:
    """Steps that take less the more cores they have, and a list of what was timed."""

    def __init__(self) -> None:
        self.events: list[str] = []

    @contextmanager
    def __call__(
        self, machine: Any, model: Any, layout: Any, kv_dtype: str, plans_on: Any, folder: Path
    ) -> Any:
        self.plans_on = plans_on
        self.events.append("open")
        yield self.Steps(self)
        self.events.append("close")

    class Steps:
        def __init__(self, timer: Timer) -> None:
            self.timer = timer

        def __call__(self, case: StepCase, candidate: Candidate, home: Candidate) -> float:
            assert self.timer.plans_on(candidate).of(case.phase).cpus == candidate.cpus
            self.timer.events.append(case.phase.value)
            return 1000.0 / len(candidate.cpus)

        def mixed_us(self, plans: Any, load: Any) -> float:
            self.timer.events.append("mixed")
            return 77.0


def test_a_measuring_search_runs_steps_within_its_context(tmp_path: Path) -> None:
    timer = Timer()
    machine = load_machine("epyc-guest")
    config = EngineConfig(model="llama-3.2-1b", cache_dir=tmp_path)
    plans, _, result = make_plans(config, machine, preset("llama-3.2-1b"), timer)
    assert (timer.events[0], timer.events[-1]) == ("open", "close")
    assert set(timer.events[1:-1]) == {"prefill", "decode", "mixed"}
    assert result.decode.chosen.measured_us == 500.0
    assert plans.decode.cpus == (0, 1)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    machine = load_machine("epyc-guest")
    limits = replace(machine.limits, memory_available_bytes=1 << 30)

    def time_steps(*arguments: Any) -> Any:
        raise AssertionError

    config = EngineConfig(model="llama-3.2-1b", cache_dir=tmp_path)
    with pytest.raises(MemoryLimitError):
        make_plans(config, replace(machine, limits=limits), preset("llama-3.2-1b"), time_steps)
