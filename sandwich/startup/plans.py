"""From a configuration to plans: dtypes and layout, the planner's wishes, and how much memory the
plans take. Whatever `auto` means here is decided once, and said; nothing is loaded or compiled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from codegen.layout.model import DEFAULT_BLOCK_SIZE, ModelLayout
from codegen.spec import ModelShape
from platforms.machine import Machine
from platforms.memory import HUGE_PAGE_BYTES
from platforms.sysfs import format_cpu_list, parse_cpu_list
from sandwich.config import EngineConfig
from sandwich.engine.pace import Pace, TargetPace, Targets
from sandwich.errors import ConfigError
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.specs import corun_specs, program_specs, step_bytes
from sandwich.models.config import ModelConfig
from sandwich.startup.memory_plan import MemoryPlan, longest_context, plan_memory
from sandwich.startup.quantization import weight_formats
from schedules.calibration import load_calibration
from schedules.mixed.choice import DEFAULT_TPOT_MS
from schedules.mixed.plan import MixedMode, MixedPlanError
from schedules.plan import PlanPair
from schedules.planner import Planned, Planner, PlanWishes, StepTimes
from schedules.records import RecordBook
from schedules.search import SearchResult
from schedules.tiles.default_plans import panel_width
from schedules.tiles.tuned_plans import render_origins
from schedules.topotree import Candidate

# Rows of logits that are in memory together where many are scored: more of them prefill a prompt
# with log probabilities by half a per cent faster (SmolLM2-135M, 256 rows, two cores of Zen 4).
LOGIT_ROWS: Final = 64
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
    Raises MemoryLimitError if the model cannot fit, ConfigError for wishes that cannot be.
    """
    layout = _layout(config, machine, model)
    kv_dtype = layout.dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    planner = Planner(
        machine,
        layout,
        kv_dtype,
        _wishes(config, machine, layout.shape),
        load_calibration(config.cache_dir, machine),
        RecordBook.open(machine, config.cache_dir),
    )
    planned = _plan(config, planner)
    memory = _memory(config, machine, model, layout, kv_dtype, planned.plans)
    if time_steps is not None:
        with time_steps(machine, model, layout, kv_dtype, planner.on, config.cache_dir) as measure:
            planned = _plan(config, planner, measure)
        memory = _memory(config, machine, model, layout, kv_dtype, planned.plans)
    _say(planned, memory)
    return planned.plans, memory, planned.result


def executor_limits(config: EngineConfig, shape: ModelShape, num_blocks: int) -> ExecutorLimits:
    """The largest batch of an engine with `num_blocks` blocks of KV cache."""
    return ExecutorLimits(
        block_size=DEFAULT_BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=shape.max_model_len,
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        max_num_logits=max(config.max_num_seqs, LOGIT_ROWS),
    )


def _layout(config: EngineConfig, machine: Machine, model: ModelConfig) -> ModelLayout:
    """The layout of the model with its longest sequences, in the types that were asked for."""
    isa, dtype = machine.isa_row, _resolve_dtype(config.dtype, model)
    shape = model.shape(longest_context(model, config.max_model_len))
    formats = weight_formats(config, dtype, model.stored)
    return ModelLayout.build(
        shape, dtype, isa.lanes, panel_width(isa), formats.layers, formats.lm_head
    )


def _resolve_dtype(dtype: str, model: ModelConfig) -> str:
    """float32 for checkpoints stored so, bfloat16 for the 16-bit ones and where nothing is said."""
    if dtype != "auto":
        return dtype
    return "float32" if model.dtype == "float32" else "bfloat16"


def _wishes(config: EngineConfig, machine: Machine, shape: ModelShape) -> PlanWishes:
    limits = executor_limits(config, shape, num_blocks=1)
    is_free = config.cpu_bind in ("auto", "nobind")
    return PlanWishes(
        max_num_seqs=limits.max_num_seqs,
        max_chunk_tokens=limits.max_num_batched_tokens,
        max_step_tokens=limits.max_step_tokens,
        cpus=None if is_free else _named_cpus(config.cpu_bind, machine),
        name=f"--cpu-bind {config.cpu_bind}",
        mixed_mode=None if config.mixed_steps == "auto" else MixedMode(config.mixed_steps),
        tpot_target=config.slo_tpot,
        rates_replicas=config.cpu_bind == "auto",
    )


def make_pace(config: EngineConfig, result: SearchResult, limits: ExecutorLimits) -> Pace | None:
    """What keeps the targets step by step; None where the phases run side by side in any case."""
    assert result.mixed is not None
    mode = result.mixed.plan.mode
    if mode is MixedMode.CORUN:
        return None
    modes = (MixedMode.TURNS, MixedMode.RIDE) if config.mixed_steps == "auto" else (mode,)
    tpot_ms = config.slo_tpot or DEFAULT_TPOT_MS
    ttft_s = None if config.slo_ttft is None else 1e-3 * config.slo_ttft
    costs = result.mixed.space.costs(limits.max_num_seqs, limits.max_model_len)
    targets = Targets(1e-3 * tpot_ms, ttft_s)
    return TargetPace(costs, targets, modes, limits.max_num_batched_tokens)


def _plan(config: EngineConfig, planner: Planner, measure: StepTimes | None = None) -> Planned:
    try:
        return planner.plan(measure)
    except MixedPlanError as error:
        raise ConfigError(f"--mixed-steps {config.mixed_steps}: {error}") from error


def _memory(
    config: EngineConfig,
    machine: Machine,
    model: ModelConfig,
    layout: ModelLayout,
    kv_dtype: str,
    plans: PlanPair,
) -> MemoryPlan:
    limits = executor_limits(config, layout.shape, num_blocks=1)
    nbytes = step_bytes(
        program_specs(plans, layout, kv_dtype, limits),
        corun_specs(plans, layout, kv_dtype, limits),
    )
    pool_bytes = machine.hugepages.free_explicit_bytes(HUGE_PAGE_BYTES)
    return plan_memory(model, layout, kv_dtype, nbytes, config, machine.limits, pool_bytes)


def _say(planned: Planned, memory: MemoryPlan) -> None:
    plans, result = planned.plans, planned.result
    for choice in (result.prefill, result.decode):
        _log.info("plan %s", plans.of(choice.phase).render())
        _log.info("     because %s", choice.reason)
        _log.info("     with tiles %s", render_origins(planned.origins, choice.phase))
    _log.info("plan %s", plans.mixed.render())
    _log.info("     because %s", plans.mixed.reason)
    _log.info("%s", memory.render())


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
