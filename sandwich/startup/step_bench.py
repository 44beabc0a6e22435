"""Times real steps of a model with random weights on the cores of any plan.

One copy of the weights serves all plans that are tried, as it does when an engine switches; it is
filled again only where it belongs on other NUMA nodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from codegen.layout.model import DEFAULT_BLOCK_SIZE, KvLayout, ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from platforms.memory import Arena
from sandwich.executor.assembly import TIMERS_FROM, compiled_executor
from sandwich.executor.base import Batch, ExecutorLimits
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.numa_placement import Placement, place
from sandwich.executor.rehearsal import blocks_of, rehearsal
from sandwich.models.config import ModelConfig
from sandwich.weights.load import ModelWeights, random_weights
from schedules.cost import StepCase
from schedules.mixed.cost import MixedLoad
from schedules.mixed.plan import MixedMode, MixedPlan
from schedules.plan import PlanPair
from schedules.topotree import Candidate

MAX_TOKENS: Final = 512  # of a prompt in one step
MAX_CACHED: Final = 5120  # tokens in the cache while candidates and mixed plans are timed
MAX_SEQS: Final = 32
MIN_RUNS, MAX_RUNS, MEASURE_SECONDS = 2, 20, 1.0  # of a case on a candidate
_log = logging.getLogger(__name__)


class StepBench:
    """A model's weights, filled at random, and a KV cache large enough for the cases to be timed.

    Filling takes some seconds per GB. Use from one thread; `close` gives the memory back.
    """

    def __init__(
        self,
        machine: Machine,
        model: ModelConfig,
        layout: ModelLayout,
        kv_dtype: str,
        max_cached: int,
    ) -> None:
        """max_cached: tokens that the sequences of the largest case have in the cache together."""
        shape = layout.shape
        self._machine, self._model = machine, model
        num_blocks = -(-max_cached // DEFAULT_BLOCK_SIZE) + MAX_SEQS
        self._layout = layout
        self._kv = KvLayout.of_shape(
            shape, DEFAULT_BLOCK_SIZE, layout.lanes, kv_dtype, num_blocks=num_blocks
        )
        self._limits = ExecutorLimits(
            block_size=DEFAULT_BLOCK_SIZE,
            num_blocks=num_blocks,
            max_num_seqs=MAX_SEQS,
            max_num_batched_tokens=MAX_TOKENS,
            max_model_len=shape.max_model_len,
            vocab_size=shape.vocab_size,
            max_num_logits=MAX_SEQS,
        )
        self._filled: tuple[Placement, Arena, ModelWeights] | None = None

    @contextmanager
    def on(self, plans: PlanPair, cache_dir: Path, has_timers: bool = False) -> Iterator[StepTimer]:
        """Compile for the plans, which takes seconds unless it was done before, and be ready."""
        placement = place(self._machine, plans.decode.cpus, self._layout, self._kv)
        executor = compiled_executor(
            plans,
            self._layout,
            self._kv,
            self._limits,
            lambda: self._weights(placement),
            cache_dir,
            debug=TIMERS_FROM if has_timers else 0,
            placement=placement,
        )
        try:
            yield StepTimer(executor, self._layout.shape.vocab_size)
        finally:
            executor.close()

    def _weights(self, placement: Placement) -> ModelWeights:
        """The weights where a plan's cores want them."""
        if self._filled is None or self._filled[0] != placement:
            self.close()
            arena = Arena(self._layout.weight_bytes, "weights", placement.nodes, placement.weights)
            weights = random_weights(self._model, self._layout, arena)
            self._filled = placement, arena, weights
        return self._filled[2]

    def close(self) -> None:
        """Free the weights."""
        if self._filled is not None:
            self._filled[1].close()
            self._filled = None


@dataclass(frozen=True)
class StepTimer:
    """Steps of one pair of plans."""

    executor: CompiledExecutor
    vocab_size: int

    def seconds(self, case: StepCase) -> float:
        """Run one step; the time of its native call."""
        return self._native(batch_of(case, self.vocab_size))

    def _native(self, batch: Batch) -> float:
        seconds = self.executor.run(batch).native_seconds
        assert seconds is not None
        return seconds

    def mixed_seconds(self, plan: MixedPlan, load: MixedLoad) -> float:
        """From token to token of the sequences that decode, while the last chunk of the prompt is
        prefilled; the time of native calls.
        """
        chunk = min(plan.chunk_tokens, load.prompt, MAX_TOKENS - load.batch)
        decoding, last = [(load.context - 1, 1)] * load.batch, (load.prompt - chunk, chunk)
        size, vocab_size = DEFAULT_BLOCK_SIZE, self.vocab_size
        if plan.mode is MixedMode.RIDE:
            sequences = [*decoding, last]
            ride = rehearsal(Phase.PREFILL, sequences, size, vocab_size, num_riders=load.batch)
            return self._native(ride)
        decode = rehearsal(Phase.DECODE, decoding, size, vocab_size)
        free = load.batch * blocks_of(load.context, size)
        prefill = rehearsal(Phase.PREFILL, [last], size, vocab_size, first_block=free)
        if plan.mode is MixedMode.TURNS:
            return self._native(prefill) + self._native(decode)
        self.executor.start(prefill)
        times = [self._native(decode)]
        while not self.executor.is_done():
            times.append(self._native(decode))
        self.executor.wait()
        return median(times)

    def operator_ns(self, case: StepCase) -> tuple[dict[str, int], float]:
        """Run one step of a program with timers; nanoseconds by operator, and of the whole call."""
        seconds = self.seconds(case)
        return self.executor.operator_ns(case.phase), 1e9 * seconds


def batch_of(case: StepCase, vocab_size: int) -> Batch:
    """A batch as the case says, of arbitrary tokens, each sequence in blocks of its own."""
    is_prefill = case.phase is Phase.PREFILL
    sequences = [(0, case.num_tokens)] if is_prefill else [(case.context - 1, 1)] * case.num_tokens
    return rehearsal(case.phase, sequences, DEFAULT_BLOCK_SIZE, vocab_size)


@dataclass(frozen=True)
class CandidateTimer:
    """Times steps on the plans of candidates, in microseconds; seconds for each new candidate."""

    bench: StepBench
    plans_on: Callable[[Candidate], PlanPair]
    cache_dir: Path

    def __call__(self, case: StepCase, candidate: Candidate, home: Candidate) -> float:
        """A step of one phase, with weights and KV cache where `home` wants them to decode."""
        _log.info("timing %s on %s", case.name, candidate.name)
        plans = replace(self.plans_on(candidate), decode=self.plans_on(home).decode)
        with self.bench.on(plans, self.cache_dir) as timer:
            return 1e6 * _shortest(lambda: timer.seconds(case))

    def mixed_us(self, plans: PlanPair, load: MixedLoad) -> float:
        """From token to token of those that decode, at the end of a prompt."""
        _log.info("timing %s", plans.mixed.render())
        with self.bench.on(plans, self.cache_dir) as timer:
            return 1e6 * _shortest(lambda: timer.mixed_seconds(plans.mixed, load))


@contextmanager
def timed_steps(
    machine: Machine,
    model: ModelConfig,
    layout: ModelLayout,
    kv_dtype: str,
    plans_on: Callable[[Candidate], PlanPair],
    cache_dir: Path,
) -> Iterator[CandidateTimer]:
    """A timer within the context, which takes the memory of the weights and seconds to fill it."""
    with closing(StepBench(machine, model, layout, kv_dtype, MAX_CACHED)) as bench:
        yield CandidateTimer(bench, plans_on, cache_dir)


def _shortest(run: Callable[[], float]) -> float:
    """Of several runs, as many as a second allows: neighbours only ever slow a step down."""
    times = [run()]
    while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and sum(times) < MEASURE_SECONDS):
        times.append(run())
    return min(times)
