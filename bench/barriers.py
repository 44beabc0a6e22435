"""What a barrier of a plan's cores costs, alone and in a step."""

from __future__ import annotations

from contextlib import closing
from statistics import median
from typing import Any

from codegen.layout.model import ModelLayout
from codegen.probes.barriers import BarrierProbe
from codegen.spec import Phase
from codegen.step.operators import step_operators
from platforms.isa import IsaRow
from platforms.memory import Arena
from sandwich.executor.launcher import Launcher
from schedules.plan import Plan, PlanPair

NUM_SAMPLES = 15
NUM_BARRIERS = 2000  # in a sample


def barrier_us(isa: IsaRow, plan: Plan, is_tvm: bool = False) -> float:
    """Microseconds of a barrier of the plan's cores, back to back: the median of some samples.

    `is_tvm`: of TVM's own barrier on the same cores. Zero for one core.
    """
    if len(plan.cpus) == 1:
        return 0.0
    probe = BarrierProbe(isa, plan.core_groups, is_tvm)
    spec = probe.state_spec
    with (
        closing(Arena(spec.arena_nbytes, "barrier")) as arena,
        closing(Launcher("barriers", plan.cpus)) as launcher,
    ):
        state = arena.array(spec.shape, spec.dtype)

        def seconds(num_barriers: int) -> float:
            return launcher.run(lambda: probe.run(state, num_barriers)).seconds

        seconds(1)
        return 1e6 * median(
            max(0.0, seconds(NUM_BARRIERS) - seconds(0)) / NUM_BARRIERS for _ in range(NUM_SAMPLES)
        )


def barriers(isa: IsaRow, plans: PlanPair, layout: ModelLayout) -> dict[str, Any]:
    """For each phase what a barrier takes, and all of a step, one behind each operator."""
    count = step_operators(layout).num_barriers
    costs = {phase: barrier_us(isa, plans.of(phase)) for phase in Phase}
    return {
        phase.value: {"us": us, "per_step": count, "step_us": count * us}
        for phase, us in costs.items()
    }
