"""The fit of kernel rates gives back the rates that steps were made with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codegen.layout.model import ModelLayout
from codegen.spec import Phase, WeightFormat
from platforms.machines import load_machine
from sandwich.startup.calibrate import PROBE_MODEL, probe_cases
from schedules.cost import StepCase, operators
from schedules.kernel_fit import TimedStep, program_rates
from schedules.rates import Curve, KernelRates, estimated_rates

LAYOUT = ModelLayout.build(PROBE_MODEL.shape(2048), "bfloat16", 16, 64)
QUERY_TILE = 4
TRUTH = replace(
    estimated_rates(load_machine("epyc-guest"), WeightFormat("bfloat16")).prefill,
    gemm_gflops=Curve(((1.0, 40.0), (32.0, 180.0), (512.0, 200.0))),
    attention_gflops=70.0,
    attention_unit_us=0.6,
)


def timed(case: StepCase, rates: KernelRates, launch_ns: float = 9000.0) -> TimedStep:
    """A step that takes what the model says."""
    ops = operators(LAYOUT, "bfloat16", case.step(QUERY_TILE)).operators
    ns = {op.name: 1e3 * op.repeats * op.num_units * op.unit_us(rates) for op in ops}
    return TimedStep(case, ns, sum(ns.values()) + launch_ns)


@pytest.mark.parametrize("phase", Phase)
def test_the_fit_finds_the_rates_that_made_the_times(phase: Phase) -> None:
    steps = [timed(case, TRUTH) for case in probe_cases(phase)]
    found = program_rates(LAYOUT, "bfloat16", QUERY_TILE, steps)
    assert (found.weights, found.phase) == ("bfloat16", phase)
    assert found.launch_us == pytest.approx(9.0)
    kernels = found.kernels
    assert kernels.attention_gflops == pytest.approx(70.0)
    assert kernels.attention_unit_us == pytest.approx(0.6)
    for name in ("embed_ns", "norm_ns", "rope_ns", "argmax_ns"):
        assert getattr(kernels, name) == pytest.approx(getattr(TRUTH, name))
    for rows, gflops in kernels.gemm_gflops.points:
        assert gflops == pytest.approx(TRUTH.gemm_gflops.at(rows))


def test_times_of_attention_that_contradict_each_other_are_taken_as_arithmetic() -> None:
    steps = [timed(StepCase(Phase.DECODE, 1, n), TRUTH) for n in (64, 512)]
    slow = replace(steps[1], operator_ns={**steps[1].operator_ns, "attention": 1e6})
    kernels = program_rates(LAYOUT, "bfloat16", QUERY_TILE, [steps[0], slow]).kernels
    assert kernels.attention_unit_us == 0.0
    assert kernels.attention_gflops > 0


@pytest.mark.parametrize(
    ("x", "y"), [(0, 10.0), (1, 10.0), (2, 15.0), (3, 20.0), (4, 10.0), (5, 0.0), (9, 0.0)]
)
def test_a_curve_is_straight_between_its_points_and_flat_outside(x: float, y: float) -> None:
    assert Curve(((1, 10.0), (3, 20.0), (5, 0.0))).at(x) == pytest.approx(y)
    assert Curve(((2, y),)).at(x) == y
