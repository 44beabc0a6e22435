"""From plans to the specs of phase programs and the memory they work in, without a compiler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from codegen.layout.arrays import TensorSpec
from codegen.layout.model import ModelLayout
from codegen.spec import Phase, ProgramSpec, StepLimits
from codegen.step.arguments import argument_specs
from sandwich.executor.base import ExecutorLimits
from schedules.plan import PlanPair

Specs = Mapping[Phase, ProgramSpec]
NO_SPECS: Final[Specs] = {}


def program_specs(
    plans: PlanPair,
    layout: ModelLayout,
    kv_dtype: str,
    limits: ExecutorLimits,
    has_timers: bool = False,
) -> dict[Phase, ProgramSpec]:
    """What to compile for both phases; the two programs share weights, cache and batch sizes."""
    shape = layout.shape
    step_limits = StepLimits(
        max_num_tokens=limits.max_step_tokens,
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
            dtype=layout.dtype,
            kv_dtype=kv_dtype,
            panel=plans.panel,
            limits=step_limits,
            groups=plans.of(phase).core_groups,
            tiles=plans.of(phase).tiles,
            query_tile=plans.of(phase).query_tile,
            has_timers=has_timers,
            weights=layout.weights,
            lm_head=layout.head,
        )
        for phase in Phase
    }


def corun_specs(
    plans: PlanPair,
    layout: ModelLayout,
    kv_dtype: str,
    limits: ExecutorLimits,
    has_timers: bool = False,
) -> dict[Phase, ProgramSpec]:
    """What else to compile if the mixed plan co-runs: both phases on the cores set apart for each,
    with room for the tokens of a decode step alone beside a prefill step; else nothing.
    """
    if plans.corun is None:
        return {}
    short = replace(limits, max_num_batched_tokens=limits.max_num_seqs)
    return {
        phase: program_specs(plans.corun, layout, kv_dtype, most, has_timers)[phase]
        for phase, most in ((Phase.PREFILL, limits), (Phase.DECODE, short))
    }


def step_arrays(spec: ProgramSpec) -> dict[str, TensorSpec]:
    """Metadata and workspace of a program, by name."""
    kinds = argument_specs(spec)
    return kinds["metadata"] | kinds["workspace"]


def distinct_arrays(specs: Iterable[ProgramSpec]) -> dict[tuple[str, TensorSpec], TensorSpec]:
    """One entry per array of metadata and workspace: programs that never run at the same time
    share those of one name and shape.
    """
    return {(name, array): array for spec in specs for name, array in step_arrays(spec).items()}


def step_bytes(specs: Specs, corun: Specs = NO_SPECS) -> int:
    """Bytes of an arena for the metadata and workspace of all programs, those of `corun_specs`
    included. What decodes beside a prefill step shares nothing.
    """
    alone = [*specs.values(), *(corun[phase] for phase in corun if phase is Phase.PREFILL)]
    apart = [corun[phase] for phase in corun if phase is Phase.DECODE]
    return sum(
        array.arena_nbytes for group in (alone, apart) for array in distinct_arrays(group).values()
    )
