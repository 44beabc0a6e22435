"""Barriers of a plan: what they cost, and how many a program has."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import pytest

import bench.barriers
from bench.barriers import barrier_us, barriers
from codegen.layout.model import ModelLayout
from codegen.probes.barriers import BarrierProbe
from codegen.spec import Phase, WeightFormat
from codegen.step.arguments import Layouts
from codegen.step.operators import step_operators
from codegen.step.program import phase_program
from platforms.isa import isa_row
from sandwich.executor.base import NativeTime
from sandwich.executor.launcher import Job, Launcher
from schedules.plan import PlanPair
from schedules.tiles.default_plans import default_plans
from tests.codegen.conftest import SHAPE, make_spec

GENERIC = isa_row("generic")
CPUS = sorted(os.sched_getaffinity(0))[:2]


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> PlanPair:
    monkeypatch.setattr(bench.barriers, "NUM_SAMPLES", 3)
    monkeypatch.setattr(bench.barriers, "NUM_BARRIERS", 20)
    return default_plans(GENERIC, CPUS, SHAPE)


@pytest.mark.parametrize("is_tvm", [False, True])
def test_one_core_waits_for_nobody(plans: PlanPair, is_tvm: bool) -> None:
    assert barrier_us(GENERIC, plans.decode.on(CPUS[:1]), is_tvm) == 0.0


@pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")
@pytest.mark.parametrize("is_tvm", [False, True])
def test_what_a_call_takes_beside_its_barriers_is_not_theirs(
    plans: PlanPair, is_tvm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    class Counting(BarrierProbe):
        def run(self, state: npt.NDArray[Any], num_barriers: int) -> None:
            counts.append(num_barriers)
            super().run(state, num_barriers)

    class Clocked(Launcher):
        """A call takes a millisecond and each of its barriers two microseconds."""

        def run(self, job: Job) -> NativeTime:
            super().run(job)
            return NativeTime(0.0, 1e-3 + 2e-6 * counts[-1])

    monkeypatch.setattr(bench.barriers, "BarrierProbe", Counting)
    monkeypatch.setattr(bench.barriers, "Launcher", Clocked)
    assert barrier_us(GENERIC, plans.decode, is_tvm) == pytest.approx(2.0)
    assert sum(counts) == 1 + 3 * 20


W8A8 = WeightFormat("int8", activations="int8")


def tiny_layout(weights: WeightFormat | None = None) -> ModelLayout:
    return Layouts.of(replace(make_spec("generic", "float32"), weights=weights)).model


def test_a_step_has_a_barrier_behind_each_operator(plans: PlanPair) -> None:
    layout = tiny_layout()
    costs, more = barriers(GENERIC, plans, layout), barriers(GENERIC, plans, tiny_layout(W8A8))
    num_layers = layout.shape.num_layers
    assert more["decode"]["per_step"] == costs["decode"]["per_step"] + 2 * num_layers
    assert costs.keys() == {"prefill", "decode"}
    for cost in costs.values():
        assert cost["per_step"] == num_layers * 8 + 5
        assert cost["step_us"] == cost["per_step"] * cost["us"]


@pytest.mark.parametrize("weights", [None, W8A8, WeightFormat("int4", "int8", 32)])
@pytest.mark.parametrize("phase", Phase)
def test_a_program_has_as_many_barriers_as_are_counted(
    phase: Phase, weights: WeightFormat | None
) -> None:
    # The layers are a loop; a head is a group.
    spec = make_spec("generic", "float32", phase=phase, num_cores=2, num_layers=1, head_dim=32)
    spec = replace(spec, weights=weights)
    program = phase_program(spec)
    count = len(re.findall(r"Module\.meet\w*\(", program.script()))
    operators = step_operators(Layouts.of(spec).model)
    optional = sum(op.num_passes for op, _ in operators if op.is_optional)
    assert count == operators.num_barriers + optional
