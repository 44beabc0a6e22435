"""From a configuration to plans: which cores run each phase, and how much memory that takes.

Whatever `auto` means for dtypes and cores is decided here, once, and said. Loads and compiles
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from codegen.layout.model import DEFAULT_BLOCK_SIZE, ModelLayout
from codegen.spec import ModelShape
from platforms.machine import Machine
from platforms.memory import HUGE_PAGE_BYTES
from platforms.sysfs import format_cpu_list, parse_cpu_list
from sandwich.config import ConfigError, EngineConfig
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.specs import corun_specs, program_specs, step_bytes
from sandwich.models.config import ModelConfig
from sandwich.startup.memory_plan import MemoryPlan, longest_context, plan_memory
from sandwich.startup.quantization import weight_formats
from schedules.calibration import Calibration, load_calibration
from schedules.cost import StepCase
from schedules.mixed.choice import MixedChoice, choose_mixed
from schedules.mixed.cost import MixedLoad, MixedSpace
from schedules.mixed.plan import MixedMode, MixedPlanError
from schedules.plan import PlanPair
from schedules.rates import MachineRates, estimated_rates
from schedules.records import RecordBook
from schedules.search import (
    DECODE_CONTEXT,
    PREFILL_TOKENS,
    PlanSearch,
    SearchResult,
    on_candidate,
)
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.tiles.tuned_plans import render_origins, tuned_plans
from schedules.topotree import Candidate, TopoTree, candidates, named_candidate, refined

MIXED_BATCH: Final = 4  # sequences that decode in the load that mixed plans are rated with


class StepTimes(Protocol):
    """Microseconds of real steps: of a case on a candidate with the memory on the nodes of another,
    and from token to token while a prompt is prefilled under a mixed plan.
    """

    def __call__(self, case: StepCase, candidate: Candidate, home: Candidate) -> float: ...

    def mixed_us(self, plans: PlanPair, load: MixedLoad) -> float: ...


# (machine, model, layout, KV type, plans on a candidate, folder of compiled programs) -> a context
# in which steps of candidates can be timed; sandwich.startup.step_bench.timed_steps is one.
TimeSteps = Callable[
    [Machine, ModelConfig, ModelLayout, str, Callable[[Candidate], PlanPair], Path],
    AbstractContextManager[StepTimes],
]
_log = logging.getLogger(__name__)


def make_plans(
    config: EngineConfig,
    machine: Machine,
    model: ModelConfig,
    time_steps: TimeSteps | None = None,
) -> tuple[PlanPair, MemoryPlan, SearchResult]:
    """The execution and memory plans, printed, and the search that chose the cores.

    Loads nothing and takes milliseconds, unless `time_steps` runs the best few candidates.
    Raises MemoryLimitError if the model cannot fit.
    """
    isa = machine.isa_row
    shape = model.shape(longest_context(model, config.max_model_len))
    dtype = _resolve_dtype(config.dtype, model)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    formats = weight_formats(config, dtype)
    layout = ModelLayout.build(
        shape, dtype, isa.lanes, panel_width(isa), formats.layers, formats.lm_head
    )
    calibration = load_calibration(config.cache_dir, machine)
    hidden_groups = calibration.groups_of(machine) if calibration else ()
    tree = TopoTree.of(machine, groups=hidden_groups)
    found = _core_sets(config.cpu_bind, machine, tree, hidden_groups)
    plans = default_plans(isa, found[0].cpus, shape.group_size, formats.layers, formats.lm_head)
    query_tile = plans.prefill.query_tile
    rates = _rates(machine, layout, calibration)
    space = PlanSearch(machine, found, layout, kv_dtype, query_tile, rates)

    def memory_of(plans: PlanPair) -> MemoryPlan:
        limits = executor_limits(config, shape, num_blocks=1)
        nbytes = step_bytes(
            program_specs(plans, layout, kv_dtype, limits),
            corun_specs(plans, layout, kv_dtype, limits),
        )
        pool_bytes = machine.hugepages.free_explicit_bytes(HUGE_PAGE_BYTES)
        return plan_memory(model, layout, kv_dtype, nbytes, config, machine.limits, pool_bytes)

    records = RecordBook.open(machine, config.cache_dir)

    def tuned_on(candidate: Candidate) -> PlanPair:
        return tuned_plans(on_candidate(plans, machine, candidate), layout, records)[0]

    result = space.run()
    mixed = _mixed(config, machine, result, layout, kv_dtype, query_tile)
    if time_steps is not None:
        memory_of(result.applied_to(plans, machine))  # raises before anything is filled
        with time_steps(machine, model, layout, kv_dtype, tuned_on, config.cache_dir) as measure:
            result = space.run(measure)
            mixed = _mixed(config, machine, result, layout, kv_dtype, query_tile)
            chosen = replace(result, mixed=mixed).applied_to(plans, machine)
            tuned, _ = tuned_plans(chosen, layout, records)
            mixed = mixed.measured(measure.mixed_us(tuned, mixed.space.load))
    result = replace(
        result,
        mixed=mixed,
        hidden_groups=hidden_groups,
        replicas=space.replicas(tree, result) if config.cpu_bind == "auto" else None,
    )
    plans, origins = tuned_plans(result.applied_to(plans, machine), layout, records)
    memory = memory_of(plans)
    for choice in (result.prefill, result.decode):
        _log.info("plan %s", plans.of(choice.phase).render())
        _log.info("     because %s", choice.reason)
        _log.info("     with tiles %s", render_origins(origins, choice.phase))
    _log.info("plan %s", plans.mixed.render())
    _log.info("     because %s", plans.mixed.reason)
    _log.info("%s", memory.render())
    return plans, memory, result


def _mixed(
    config: EngineConfig,
    machine: Machine,
    result: SearchResult,
    layout: ModelLayout,
    kv_dtype: str,
    query_tile: int,
) -> MixedChoice:
    """What happens while there is work of both phases. Raises ConfigError if that cannot be."""
    limits = executor_limits(config, layout.shape, num_blocks=1)
    prompt = min(PREFILL_TOKENS, limits.max_model_len)
    space = MixedSpace(
        machine=machine,
        prefill=result.prefill.chosen.candidate,
        decode=result.decode.chosen.candidate,
        layout=layout,
        kv_dtype=kv_dtype,
        query_tile=query_tile,
        rates=result.rates,
        max_chunk_tokens=limits.max_num_batched_tokens,
        max_step_tokens=limits.max_step_tokens,
        load=MixedLoad(
            batch=max(1, min(MIXED_BATCH, limits.max_num_seqs - 1)),
            context=min(DECODE_CONTEXT, limits.max_model_len),
            prompt=prompt,
        ),
    )
    mode = None if config.mixed_steps == "auto" else MixedMode(config.mixed_steps)
    try:
        return choose_mixed(space, config.tpot_target, mode)
    except MixedPlanError as error:
        raise ConfigError(f"--mixed-steps {config.mixed_steps}: {error}") from error


def executor_limits(config: EngineConfig, shape: ModelShape, num_blocks: int) -> ExecutorLimits:
    """The largest batch of an engine with `num_blocks` blocks of KV cache."""
    return ExecutorLimits(
        block_size=DEFAULT_BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=shape.max_model_len,
        vocab_size=shape.vocab_size,
        max_num_logits=config.max_num_seqs,
    )


def _resolve_dtype(dtype: str, model: ModelConfig) -> str:
    """float32 for checkpoints stored so, bfloat16 for the 16-bit ones and where nothing is said."""
    if dtype != "auto":
        return dtype
    return "float32" if model.dtype == "float32" else "bfloat16"


def _rates(machine: Machine, layout: ModelLayout, calibration: Calibration | None) -> MachineRates:
    """Measured, or else estimated."""
    if calibration is None:
        return estimated_rates(machine, layout.weights)
    return calibration.rates(machine, layout.weights)


def _core_sets(
    cpu_bind: str, machine: Machine, tree: TopoTree, hidden_groups: Sequence[Sequence[int]]
) -> tuple[Candidate, ...]:
    """The sets of CPUs to choose from, all first; only one if the user names the CPUs."""
    if cpu_bind in ("auto", "nobind"):
        return candidates(tree)
    topology = refined(machine.topology, hidden_groups)
    return (named_candidate(f"--cpu-bind {cpu_bind}", topology, _named_cpus(cpu_bind, machine)),)


def _named_cpus(cpu_bind: str, machine: Machine) -> tuple[int, ...]:
    """The CPUs of lists like 0-31|32-63, each once; ConfigError for one that may not be used.

    More of them than the quota has cores' time, and siblings of one core, are the user's decision,
    with a warning.
    """
    try:
        named = dict.fromkeys(cpu for part in cpu_bind.split("|") for cpu in parse_cpu_list(part))
    except ValueError as error:
        raise ConfigError(f"--cpu-bind: {error}") from error
    limits = machine.limits
    allowed = set(limits.affinity) & set(machine.topology.cpus)
    allowed &= set(limits.cpuset or allowed)
    if strange := sorted(set(named) - allowed):
        raise ConfigError(
            f"--cpu-bind names CPU {strange[0]}, which this process may not use; "
            f"it may use {format_cpu_list(allowed)}"
        )
    if limits.cpu_quota is not None and len(named) > limits.cpu_quota:
        _log.warning(
            "--cpu-bind names %d CPUs, but the CPU quota is %g cores: the kernel will stop all of "
            "them for a part of every period; name fewer, or raise %s",
            len(named),
            limits.cpu_quota,
            limits.cgroup.cpu_quota_source,
        )
    shared = [both for c in machine.topology.cores() if len(both := set(c.cpus) & set(named)) > 1]
    if shared:
        _log.warning(
            "--cpu-bind names CPUs that share a core (%s): they share its vector units too, and "
            "one of each is mostly as fast",
            format_cpu_list(shared[0]),
        )
    return tuple(named)
