"""TVM's own tuner, MetaSchedule, on a GEMM of one fixed shape: the reference for ours.

Its design space, postprocessors and mutators are used as they are, with measured times for fitness.
Its own drivers are not: in TVM 0.27.0 the evolutionary and the replay strategy end the process with
a segmentation fault before their first trial (TuneContext.pre_tuning), and so do two of its four
mutators (compute location, parallelism) when they are set up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace

from codegen.compile import load, object_code
from platforms.isa import IsaRow

NAME = "main"
RANDOM_PART = 0.25  # of the trials that are drawn anew; the others change the tiles of good ones
NUM_PARENTS = 8  # the best so far, which are changed


@dataclass(frozen=True)
class StaticGemm:
    """C[m, n] = sum over k of A[m, k] * W[k, n], float32, of exactly this shape."""

    m: int
    n: int
    k: int
    num_cores: int

    def module(self) -> Any:
        """The untuned TVM module: (a, w, c)."""
        a = te.placeholder((self.m, self.k), "float32", name="A")
        w = te.placeholder((self.k, self.n), "float32", name="W")
        axis = te.reduce_axis((0, self.k), "k")
        c = te.compute((self.m, self.n), lambda i, j: te.sum(a[i, axis] * w[axis, j], axis=axis))
        function = te.create_prim_func([a, w, c]).with_attr("global_symbol", NAME)
        return tvm.IRModule({NAME: function})


@dataclass(frozen=True)
class FoundProgram:
    """The fastest program of a search: its object code, and what finding it took."""

    code: bytes
    run_seconds: float
    num_trials: int
    search_seconds: float

    def function(self) -> Any:
        """The program as a function of three tensors."""
        return load(self.code, NAME)


def search(
    gemm: StaticGemm,
    isa: IsaRow,
    num_trials: int,
    seconds_of: Callable[[Any], float],
    seed: int = 0,
) -> FoundProgram:
    """The best of `num_trials` programs; `seconds_of` runs a function of (a, w, c) and times it.

    Programs that do not compile count as trials. RuntimeError if none does.
    """
    target = tvm.target.Target(isa.llvm_target() | {"num-cores": gemm.num_cores})
    draws, started = random.Random(seed), time.perf_counter()
    candidates = _Candidates(gemm, target, draws)
    best: tuple[float, bytes] | None = None
    for trial in range(num_trials):
        is_new = trial < NUM_PARENTS or draws.random() < RANDOM_PART
        drawn = candidates.draw() if is_new else candidates.mutate()
        if drawn is None:
            continue
        schedule, trace = drawn
        try:
            code = object_code(tvm.compile(schedule.mod, target=target).mod)
        except tvm.error.TVMError:
            continue
        seconds = seconds_of(load(code, NAME))
        candidates.learn(trace, seconds)
        if best is None or seconds < best[0]:
            best = (seconds, code)
    if best is None:
        raise RuntimeError(f"none of {num_trials} programs of MetaSchedule for {gemm} compiles")
    return FoundProgram(best[1], best[0], num_trials, time.perf_counter() - started)


class _Candidates:
    """Schedules out of MetaSchedule's design space, drawn anew or near the best ones."""

    def __init__(self, gemm: StaticGemm, target: Any, draws: random.Random) -> None:
        self._module, self._draws = gemm.module(), draws
        self._mutator = ms.mutator.MutateTileSize()
        one = tvm.tirx.FloatImm("float64", 1.0)
        self._space = ms.space_generator.PostOrderApply(
            sch_rules="llvm",
            postprocs=ms.postproc.Postproc.create("llvm"),
            mutator_probs={self._mutator: one},
        )
        self._context = ms.TuneContext(
            self._module,
            target=target,
            space_generator=self._space,
            num_threads=gemm.num_cores,
            rand_state=draws.randrange(1, 1 << 30),
        )
        self._spaces = [space.trace for space in self._context.generate_design_space()]
        self._measured: list[tuple[float, int, Trace]] = []

    def draw(self) -> tuple[Schedule, Trace] | None:
        """A random point of a random sub-space."""
        trace = self._draws.choice(self._spaces)
        return self._applied(Trace(trace.insts, {}))

    def mutate(self) -> tuple[Schedule, Trace] | None:
        """One of the best with another tile."""
        if not self._measured:
            return self.draw()
        _, _, parent = self._draws.choice(sorted(self._measured)[:NUM_PARENTS])
        changed = self._mutator.apply(parent)
        return None if changed is None else self._applied(changed)

    def learn(self, trace: Trace, seconds: float) -> None:
        """Remember how long a point took."""
        self._measured.append((seconds, len(self._measured), trace))

    def _applied(self, trace: Trace) -> tuple[Schedule, Trace] | None:
        schedule = Schedule(self._module, seed=self._draws.randrange(1, 1 << 30))
        trace.apply_to_schedule(schedule, remove_postproc=True)
        point = schedule.trace
        if not all(postproc.apply(schedule) for postproc in self._space.postprocs):
            return None
        return schedule, point
