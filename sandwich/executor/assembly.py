"""A compiled executor from its parts: programs are compiled while the weights are filled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from codegen.layout.model import KvLayout, ModelLayout
from platforms.memory import Arena
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.compiled import CompiledExecutor, Programs
from sandwich.executor.numa_placement import NOT_PLACED, Placement
from sandwich.executor.programs import compile_programs
from sandwich.executor.specs import corun_specs, program_specs, step_bytes
from sandwich.weights.load import ModelWeights
from schedules.plan import PlanPair

TIMERS_FROM: Final = 3  # levels of SANDWICH_DEBUG
DUMPS_FROM: Final = {"tir": 4, "ll": 4, "asm": 5}
CORUN_PREFIX: Final = "corun-"  # of the files and threads of programs that run side by side


def compiled_executor(
    plans: PlanPair,
    layout: ModelLayout,
    kv: KvLayout,
    limits: ExecutorLimits,
    load: Callable[[], ModelWeights],
    cache_dir: Path,
    is_pinned: bool = True,
    debug: int = 0,
    placement: Placement = NOT_PLACED,
) -> CompiledExecutor:
    """Compile the programs while `load` fills the weights, then join the two.

    debug: as SANDWICH_DEBUG; from 3 on programs time their operators, from 4 on code is dumped.
    """
    has_timers = debug >= TIMERS_FROM
    specs = program_specs(plans, layout, kv.dtype, limits, has_timers)
    corun = corun_specs(plans, layout, kv.dtype, limits, has_timers)
    dump = [form for form, level in DUMPS_FROM.items() if debug >= level]

    def compile_all() -> tuple[Programs, Programs | None]:
        programs = compile_programs(specs, plans, cache_dir, is_pinned, dump)
        if plans.corun is None:
            return programs, None
        how = (plans.corun, cache_dir, is_pinned, dump, CORUN_PREFIX)
        return programs, compile_programs(corun, *how)

    with ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(compile_all)
        weights = load()
    programs, corun_programs = compiling.result()
    cache_arena = Arena(kv.nbytes, "KV cache", placement.nodes, placement.cache)
    cache = {n: cache_arena.array(s.shape, s.dtype) for n, s in kv.tensor_specs().items()}
    workspace = Arena(step_bytes(specs, corun), "workspace", placement.nodes)
    executor = CompiledExecutor(programs, limits, weights.tensors, cache, workspace, corun_programs)
    executor.warm_up()
    return executor
