"""What a barrier of a plan's cores costs, alone and in a step. Knows nothing of models' speed."""

from __future__ import annotations

from contextlib import closing
from statistics import median

from codegen.barrier_probe import BarrierProbe
from platforms.isa import IsaRow
from platforms.memory import Arena
from sandwich.executor.launcher import Launcher
from schedules.cost import LAYER_BARRIERS, STEP_BARRIERS
from schedules.plan import Plan

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


def barriers_per_step(num_layers: int) -> int:
    """Barriers in one step of a model: one behind each operator."""
    return LAYER_BARRIERS * num_layers + STEP_BARRIERS
