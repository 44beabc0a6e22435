"""From a configuration to a running engine: probe, plan, memory plan, compile, load, in that order.

Whatever `auto` means is decided here, once, and said. Nothing is loaded before it is known to fit.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.spec import ModelShape
from platforms.isa import IsaRow
from platforms.machine import Machine
from platforms.memory import Arena
from platforms.probe import probe
from platforms.render import render
from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.errors import ConfigError
from sandwich.executor.assembly import compiled_executor
from sandwich.executor.base import Executor
from sandwich.executor.null import NullExecutor
from sandwich.executor.numa_placement import Placement, place, report
from sandwich.executor.reference import ReferenceExecutor
from sandwich.executor.verify import TOLERANCE, VerifyingExecutor
from sandwich.models.config import ModelConfig
from sandwich.models.embedding import EmbeddingUse
from sandwich.requests.block_store import BlockStore
from sandwich.startup.memory_plan import MemoryPlan
from sandwich.startup.model import Model
from sandwich.startup.plans import TimeSteps, executor_limits, make_pace, make_plans
from sandwich.startup.step_bench import timed_steps
from sandwich.text.tokenizer import Tokenizer
from sandwich.weights.cache import WeightCache
from sandwich.weights.load import ModelWeights, OnProgress, told_nobody
from schedules.plan import PlanPair
from schedules.search import SearchResult

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
    search: SearchResult
    memory: MemoryPlan
    embedding_use: EmbeddingUse | None

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


def build_engine(
    config: EngineConfig,
    change_plans: Callable[[PlanPair], PlanPair] | None = None,
    on_progress: OnProgress = told_nobody,
) -> EngineParts:
    """Build what `config` asks for. Takes as long as reading the weights, and compiling at first.

    change_plans: what a benchmark makes of the plans that were chosen. on_progress: told how far
    the weights are, by the calling thread.
    Raises ConfigError, ModelError, IsaError or MemoryLimitError, each before anything is loaded.
    """
    machine = probe(isa=config.isa)
    _log.info("%s", render(machine))
    model = Model.of(config)
    tokenizer = Tokenizer(
        model.tokenizer,
        config.chat_template,
        special_tokens_in_content=config.special_tokens_in_content,
    )
    plans, memory, result = make_plans(config, machine, model.config, _time_steps(config))
    if change_plans is not None:
        plans = change_plans(plans)
    is_pinned = config.cpu_bind != "nobind"
    placement = place(machine, plans.decode.cpus, memory.layout, memory.kv, is_pinned)
    if placement.nodes:
        _log.info("memory   %s", placement.render())
    executor = _executor(config, model, plans, memory, placement, on_progress)
    pace = make_pace(config, result, executor.limits) if config.executor == "compiled" else None
    store = block_store(config, executor)
    return EngineParts(
        engine=Engine(executor, plans.mixed, config.enable_prefix_caching, pace, store=store),
        tokenizer=tokenizer,
        model_config=model.config,
        generation_defaults=model.generation_defaults,
        machine=machine,
        isa=machine.isa_row,
        plans=plans,
        search=result,
        memory=memory,
        embedding_use=model.embedding_use,
    )


def block_store(config: EngineConfig, executor: Executor) -> BlockStore | None:
    """The second tier of the prefix cache that `config` asks for, if it does.

    Raises ConfigError if there is no room for it, or nothing that it could be for.
    """
    if config.kv_offload is None:
        if config.kv_offload_dir is not None:
            raise ConfigError("--kv-offload-dir needs --kv-offload, the size; give that too")
        return None
    if not config.enable_prefix_caching:
        raise ConfigError("--kv-offload has no use with --no-enable-prefix-caching; drop one")
    folder = config.kv_offload_dir
    return BlockStore(executor, config.kv_offload, Path(folder) if folder else None)


def _time_steps(config: EngineConfig) -> TimeSteps | None:
    """What times candidates, if the user wants that and there will be something to time."""
    if config.plan_search != "measure" or config.executor != "compiled":
        return None
    return timed_steps


def _executor(
    config: EngineConfig,
    model: Model,
    plans: PlanPair,
    memory: MemoryPlan,
    placement: Placement,
    on_progress: OnProgress,
) -> Executor:
    limits = executor_limits(config, memory.layout.shape, memory.kv.num_blocks)
    if config.executor == "null":
        return NullExecutor(limits)
    nbytes = memory.layout.weight_bytes
    arena = Arena(nbytes, "weights", placement.nodes, placement.weights)
    cache = WeightCache(config.cache_dir, config.weight_cache_size)

    @functools.cache
    def load() -> ModelWeights:
        weights = model.load(memory.layout, arena, config.weights_seed, cache, on_progress)
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
    has_int8 = any(f.has_int8_activations for f in (layout.weights, layout.head))
    dtypes = (layout.dtype, memory.kv.format.product_dtype, *(["int8"] if has_int8 else []))
    coarsest = next(dtype for dtype in reversed(TOLERANCE) if dtype in dtypes)
    return VerifyingExecutor(executor, ReferenceExecutor(load(), memory.kv, limits), coarsest)
