"""From plans to the specs of phase programs and the memory they work in, without a compiler."""

from __future__ import annotations

from collections.abc import Mapping

from codegen.arguments import argument_specs
from codegen.arrays import TensorSpec
from codegen.layout import ModelLayout
from codegen.spec import Phase, ProgramSpec, StepLimits
from sandwich.executor.base import ExecutorLimits
from schedules.plan import PlanPair

Specs = Mapping[Phase, ProgramSpec]


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
            dtype=layout.dtype,
            kv_dtype=kv_dtype,
            panel=plans.panel,
            limits=step_limits,
            groups=plans.of(phase).core_groups,
            tiles=plans.of(phase).tiles,
            query_tile=plans.of(phase).query_tile,
            has_timers=has_timers,
            weights=layout.weights,
            lm_head=layout.lm_head.format,
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
