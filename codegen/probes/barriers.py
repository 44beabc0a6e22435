"""What a barrier costs: nothing but barriers, back to back, in one parallel region.

It is compiled for the same ISA row as the phase programs, whose barrier it is. TVM's own, which
polls every other worker and gives way to other threads at each look, can be had for comparison.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.compile import lower, tensor
from codegen.cores.barrier import LINE_WORDS, barrier_spec
from codegen.cores.parallel import Team, each_core, parallel_region
from codegen.functions import ir_module
from codegen.kit import Expr, T
from codegen.layout.arrays import TensorSpec
from codegen.spec import Groups, num_cores
from platforms.isa import IsaRow

NAME = "barriers"


class BarrierProbe:
    """Barriers of the cores in `groups`: sizes of the LLC groups of each NUMA node.

    ((2,),) is two cores of one group, ((4, 4), (4, 4)) are 16 of two nodes. `is_tvm`: TVM's barrier
    in place of ours, which knows no groups. For one core there is nothing to wait for.

    Call `run` on a thread whose pool (codegen.compile.pin_pool) has a worker for every core, CPUs
    in the order of the groups; with fewer workers it would wait for ever. `state` (state_spec) is
    from an Arena, 64-byte aligned. Not thread-safe. A barrier costs the time of `run(state, n)`
    minus that of `run(state, 0)`, a launch of the pool, over n; n = 10,000 takes milliseconds.
    Take the median of several: what stops one core for a moment stops all.
    """

    def __init__(self, isa: IsaRow, groups: Groups, is_tvm: bool = False) -> None:
        self.num_cores = num_cores(groups)
        own = TensorSpec((self.num_cores, LINE_WORDS), np.dtype(np.int32))  # a line for each core
        self.state_spec = own if is_tvm else barrier_spec(groups)
        self._function = lower(_barriers(isa, groups, self.state_spec, is_tvm), isa)[NAME]

    def run(self, state: npt.NDArray[np.int32], num_barriers: int) -> None:
        """Launch the pool and make `num_barriers` (under 2**31 / num_cores) barriers."""
        self._function(num_barriers, tensor(state))


def _barriers(isa: IsaRow, groups: Groups, spec: TensorSpec, is_tvm: bool) -> Any:
    """(num_barriers, state)"""

    def build() -> None:
        num_barriers = T.arg("num_barriers", T.int32())
        handle = T.arg("state", T.handle())
        state = T.match_buffer(handle, [T.int64(size) for size in spec.shape], str(spec.dtype))
        if is_tvm:
            _tvm_barriers(num_cores(groups), num_barriers, state)
            return
        team = Team(groups, state, isa)
        with parallel_region(team), T.serial(0, num_barriers):
            each_core(team, lambda core: None)

    return ir_module(NAME, build)


def _tvm_barriers(count: int, num_barriers: Expr, state: Expr) -> None:
    """As TVM makes them between loops of one region; a loop without a statement would vanish."""
    one = T.int32(1)
    with (
        T.attr(one, "pragma_parallel_launch_point", one),
        T.serial(0, num_barriers),
        T.attr(one, "pragma_parallel_barrier_when_finish", one),
        T.parallel(0, count) as core,
    ):
        T.buffer_store(state, one, [core, 0])
