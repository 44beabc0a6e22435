"""From plans to compiled phase programs: their specs, their memory, and the code behind them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.cache import ProgramCache
from codegen.compile import load, lower, object_code
from codegen.layout import TensorSpec
from codegen.program import phase_program
from codegen.spec import ModelShape, Phase, ProgramSpec, StepLimits
from codegen.step import argument_specs
from platforms.isa import isa_row
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.launcher import Launcher
from schedules.plan import PlanPair

Specs = Mapping[Phase, ProgramSpec]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PhaseProgram:
    """A compiled program, what it was compiled for, and the launcher of its plan."""

    spec: ProgramSpec
    function: Any
    launcher: Launcher


def program_specs(
    plans: PlanPair,
    shape: ModelShape,
    dtype: str,
    kv_dtype: str,
    limits: ExecutorLimits,
    has_timers: bool = False,
) -> dict[Phase, ProgramSpec]:
    """What to compile for both phases; the two programs share weights, cache and batch sizes."""
    step_limits = StepLimits(
        max_num_tokens=max(limits.max_num_batched_tokens, limits.max_num_seqs),
        max_num_seqs=limits.max_num_seqs,
        max_num_logits=limits.max_num_logits,
        max_blocks_per_seq=-(-shape.max_model_len // limits.block_size),
        num_blocks=limits.num_blocks,
        block_size=limits.block_size,
    )
    return {
        phase: ProgramSpec(
            phase=phase,
            shape=shape,
            isa=plans.of(phase).isa,
            dtype=dtype,
            kv_dtype=kv_dtype,
            panel=plans.panel,
            limits=step_limits,
            num_cores=len(plans.of(phase).cpus),
            tiles=plans.of(phase).tiles,
            query_tile=plans.of(phase).query_tile,
            has_timers=has_timers,
        )
        for phase in Phase
    }


def step_specs(specs: Specs) -> dict[Phase, dict[str, TensorSpec]]:
    """Metadata and workspace of each phase's program, by name."""
    groups = {phase: argument_specs(spec) for phase, spec in specs.items()}
    return {phase: group["metadata"] | group["workspace"] for phase, group in groups.items()}


def distinct_arrays(specs: Specs) -> dict[tuple[str, TensorSpec], TensorSpec]:
    """One entry per array of metadata and workspace: programs share those of one name and shape."""
    return {
        (name, spec): spec for group in step_specs(specs).values() for name, spec in group.items()
    }


def step_bytes(specs: Specs) -> int:
    """Bytes of an arena for the metadata and workspace of all `specs`."""
    return sum(spec.arena_nbytes for spec in distinct_arrays(specs).values())


def compile_programs(
    specs: Specs,
    plans: PlanPair,
    cache_dir: Path,
    is_pinned: bool = True,
    dump: Sequence[str] = (),
) -> dict[Phase, PhaseProgram]:
    """Machine code for both phases, from the cache or from TVM, each with its launcher.

    dump: forms to write beside the cache ("tir", "ll", "asm"); they are made by compiling again.
    """
    cache = ProgramCache(cache_dir)

    def code(spec: ProgramSpec) -> bytes:
        if dump:
            return _compile(spec, cache_dir / "dump", dump)
        return cache.get(cache.key(spec, isa_row(spec.isa)), lambda: _compile(spec))

    with ThreadPoolExecutor(len(specs)) as pool:
        objects = dict(zip(specs, pool.map(code, specs.values()), strict=True))
    return {
        phase: PhaseProgram(
            spec,
            load(objects[phase], phase.value),
            Launcher(phase.value, plans.of(phase).cpus, is_pinned),
        )
        for phase, spec in specs.items()
    }


def _compile(spec: ProgramSpec, folder: Path | None = None, dump: Sequence[str] = ()) -> bytes:
    _log.info("compiling the %s program for %s", spec.phase.value, spec.isa)
    program = phase_program(spec)
    module = lower(program, isa_row(spec.isa))
    for form in dump:
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{spec.phase.value}.{form}"
        file.write_text(program.script() if form == "tir" else module.inspect_source(form))
        _log.info("wrote %s", file)
    return object_code(module)
