"""From a configuration to a running engine: probe, plan, memory plan, compile, load, in that order.

Whatever `auto` means is decided here, once, and said. Nothing is loaded before it is known to fit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from codegen.layout.model import ModelLayout
from codegen.spec import ModelShape
from platforms.isa import IsaRow
from platforms.machine import Machine
from platforms.memory import Arena
from platforms.probe import probe
from platforms.render import render
from sandwich.config import EMBEDDED_MODEL, EngineConfig
from sandwich.engine.engine import Engine
from sandwich.executor.assembly import compiled_executor
from sandwich.executor.base import Executor
from sandwich.executor.null import NullExecutor
from sandwich.executor.numa_placement import Placement, place, report
from sandwich.executor.reference import ReferenceExecutor
from sandwich.executor.verify import TOLERANCE, VerifyingExecutor
from sandwich.models.config import ModelConfig
from sandwich.models.presets import PRESETS, preset
from sandwich.models.sampling_defaults import generation_defaults
from sandwich.startup.hub import resolve_model
from sandwich.startup.memory_plan import MemoryPlan
from sandwich.startup.plans import TimeSteps, executor_limits, make_plans
from sandwich.startup.step_bench import timed_steps
from sandwich.text.tokenizer import Tokenizer
from sandwich.weights.load import ModelWeights, load_weights, random_weights
from schedules.plan import PlanPair

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineParts:
    """A running engine and what its users need to know of how it came about."""

    engine: Engine
    tokenizer: Tokenizer
    model_config: ModelConfig
    generation_defaults: dict[str, Any]
    machine: Machine
    isa: IsaRow
    plans: PlanPair
    memory: MemoryPlan

    @property
    def dtype(self) -> str:
        """Type of the weights."""
        return self.memory.layout.dtype

    @property
    def kv_dtype(self) -> str:
        """Type of the KV cache."""
        return self.memory.kv.dtype

    @property
    def shape(self) -> ModelShape:
        """Sizes of the model, with the longest sequence that is served."""
        return self.memory.layout.shape


@dataclass(frozen=True)
class _Source:
    """Where the model comes from; a preset with random weights has no folder of its own."""

    config: ModelConfig
    folder: Path
    has_random_weights: bool

    @staticmethod
    def of(config: EngineConfig) -> _Source:
        if config.random_weights and config.model in PRESETS:
            return _Source(preset(config.model), EMBEDDED_MODEL, True)  # with a tokenizer to try it
        folder = resolve_model(config.model)
        model = replace(ModelConfig.from_folder(folder), name=config.model_name)
        return _Source(model, folder, config.random_weights)

    def load(self, layout: ModelLayout, arena: Arena, seed: int) -> ModelWeights:
        if self.has_random_weights:
            return random_weights(self.config, layout, arena, seed)
        return load_weights(self.folder, self.config, layout, arena)


def build_engine(
    config: EngineConfig, change_plans: Callable[[PlanPair], PlanPair] | None = None
) -> EngineParts:
    """Build what `config` asks for. Takes as long as reading the weights, and compiling at first.

    change_plans: what a benchmark makes of the plans that were chosen.
    Raises ConfigError, ModelError, IsaError or MemoryLimitError, each before anything is loaded.
    """
    machine = probe(isa=config.isa)
    _log.info("%s", render(machine))
    source = _Source.of(config)
    tokenizer = Tokenizer(
        source.folder,
        config.chat_template,
        special_tokens_in_content=config.special_tokens_in_content,
    )
    defaults = (
        {}
        if source.folder == EMBEDDED_MODEL and source.has_random_weights
        else (generation_defaults(source.folder))
    )
    plans, memory, _ = make_plans(config, machine, source.config, _time_steps(config))
    if change_plans is not None:
        plans = change_plans(plans)
    is_pinned = config.cpu_bind != "nobind"
    placement = place(machine, plans.decode.cpus, memory.layout, memory.kv, is_pinned)
    if placement.nodes:
        _log.info("memory   %s", placement.render())
    executor = _executor(config, source, plans, memory, placement)
    return EngineParts(
        engine=Engine(executor, plans.mixed),
        tokenizer=tokenizer,
        model_config=source.config,
        generation_defaults=defaults,
        machine=machine,
        isa=machine.isa_row,
        plans=plans,
        memory=memory,
    )


def _time_steps(config: EngineConfig) -> TimeSteps | None:
    """What times candidates, if the user wants that and there will be something to time."""
    if config.plan_search != "measure" or config.executor != "compiled":
        return None
    return timed_steps


def _executor(
    config: EngineConfig,
    source: _Source,
    plans: PlanPair,
    memory: MemoryPlan,
    placement: Placement,
) -> Executor:
    limits = executor_limits(config, memory.layout.shape, memory.kv.num_blocks)
    if config.executor == "null":
        return NullExecutor(limits)
    nbytes = memory.layout.weight_bytes
    arena = Arena(nbytes, "weights", placement.nodes, placement.weights)

    @functools.cache
    def load() -> ModelWeights:
        weights = source.load(memory.layout, arena, config.weights_seed)
        report(arena, placement.weights)
        return weights

    if config.executor == "reference":
        return ReferenceExecutor(load(), memory.kv, limits)
    executor = compiled_executor(
        plans,
        memory.layout,
        memory.kv,
        limits,
        load,
        config.cache_dir,
        is_pinned=config.cpu_bind != "nobind",
        debug=config.debug,
        placement=placement,
    )
    if not config.verify:
        return executor
    _log.warning("every step is compared with the reference, which takes time and memory")
    layout = memory.layout
    has_int8 = any(f.has_int8_activations for f in (layout.weights, layout.lm_head.format))
    dtypes = (layout.dtype, memory.kv.dtype, *(["int8"] if has_int8 else []))
    coarsest = next(dtype for dtype in reversed(TOLERANCE) if dtype in dtypes)
    return VerifyingExecutor(executor, ReferenceExecutor(load(), memory.kv, limits), coarsest)
