"""Times real steps of a model with random weights on the cores of any plan.

One copy of the weights serves all plans that are tried, as it does when an engine switches. Knows
nothing of predictions, nor of who asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from codegen.layout import DEFAULT_BLOCK_SIZE, KvLayout, ModelLayout
from codegen.spec import Phase
from platforms.memory import Arena
from sandwich.build import TIMERS_FROM, compiled_executor
from sandwich.executor.base import Batch, ExecutorLimits
from sandwich.executor.compiled import CompiledExecutor
from sandwich.models.config import ModelConfig
from sandwich.weights import ModelWeights, random_weights
from schedules.choice import MeasureStep
from schedules.cost import StepCase
from schedules.plan import PlanPair
from schedules.topotree import Candidate

MAX_TOKENS: Final = 512  # of a prompt in one step
MAX_CACHED: Final = 2048  # tokens in the cache while candidates are timed
MAX_SEQS: Final = 32
MIN_RUNS, MAX_RUNS, MEASURE_SECONDS = 2, 20, 1.0  # of a case on a candidate
_log = logging.getLogger(__name__)


class StepBench:
    """A model's weights, filled at random, and a KV cache large enough for the cases to be timed.

    Filling takes some seconds per GB. Use from one thread; `close` gives the memory back.
    """

    def __init__(
        self, model: ModelConfig, layout: ModelLayout, kv_dtype: str, max_cached: int, seed: int = 0
    ) -> None:
        """max_cached: tokens that the sequences of the largest case have in the cache together."""
        shape = layout.shape
        num_blocks = -(-max_cached // DEFAULT_BLOCK_SIZE) + MAX_SEQS
        self._layout = layout
        self._kv = KvLayout(
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            block_size=DEFAULT_BLOCK_SIZE,
            lanes=layout.lanes,
            dtype=kv_dtype,
            num_blocks=num_blocks,
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
        self._arena = Arena(layout.weight_bytes, "weights")
        self._weights: ModelWeights = random_weights(model, layout, self._arena, seed)

    @contextmanager
    def on(self, plans: PlanPair, cache_dir: Path, has_timers: bool = False) -> Iterator[StepTimer]:
        """Compile for the plans, which takes seconds unless it was done before, and be ready."""
        executor = compiled_executor(
            plans,
            self._layout,
            self._kv,
            self._limits,
            lambda: self._weights,
            cache_dir,
            debug=TIMERS_FROM if has_timers else 0,
        )
        try:
            yield StepTimer(executor, self._layout.shape.vocab_size)
        finally:
            executor.close()

    def close(self) -> None:
        """Free the weights."""
        self._arena.close()


@dataclass(frozen=True)
class StepTimer:
    """Steps of one pair of plans."""

    executor: CompiledExecutor
    vocab_size: int

    def seconds(self, case: StepCase) -> float:
        """Run one step; the time of its native call."""
        seconds = self.executor.run(batch_of(case, self.vocab_size)).native_seconds
        assert seconds is not None
        return seconds

    def operator_ns(self, case: StepCase) -> tuple[dict[str, int], float]:
        """Run one step of a program with timers; nanoseconds by operator, and of the whole call."""
        seconds = self.seconds(case)
        return self.executor.operator_ns(case.phase), 1e9 * seconds


def batch_of(case: StepCase, vocab_size: int) -> Batch:
    """A batch as the case says, of arbitrary tokens, each sequence in blocks of its own."""
    num_seqs = 1 if case.phase is Phase.PREFILL else case.num_tokens
    per_seq = case.num_tokens // num_seqs
    context = per_seq if case.phase is Phase.PREFILL else case.context
    num_blocks = -(-context // DEFAULT_BLOCK_SIZE)
    tables = np.arange(num_seqs * num_blocks, dtype=np.int32).reshape(num_seqs, num_blocks)
    positions = np.tile(np.arange(context - per_seq, context, dtype=np.int32), num_seqs)
    blocks = tables[np.repeat(np.arange(num_seqs), per_seq), positions // DEFAULT_BLOCK_SIZE]
    starts = np.arange(num_seqs + 1, dtype=np.int32) * np.int32(per_seq)
    return Batch(
        phase=case.phase,
        requests=(),
        token_ids=np.arange(case.num_tokens, dtype=np.int32) * 97 % np.int32(vocab_size),
        positions=positions,
        slot_mapping=blocks * np.int32(DEFAULT_BLOCK_SIZE) + positions % DEFAULT_BLOCK_SIZE,
        query_starts=starts,
        context_lens=np.full(num_seqs, context, np.int32),
        block_tables=tables,
        logit_rows=starts[1:] - 1,
        sampled=(),
    )


@contextmanager
def timed_steps(
    model: ModelConfig,
    layout: ModelLayout,
    kv_dtype: str,
    plans_on: Callable[[Candidate], PlanPair],
    cache_dir: Path,
) -> Iterator[MeasureStep]:
    """Within the context, a function that times a case on the plans of a candidate.

    Takes the memory of the weights and seconds to fill it, and seconds for each new candidate.
    """
    bench = StepBench(model, layout, kv_dtype, MAX_CACHED)

    def measure(case: StepCase, candidate: Candidate) -> float:
        _log.info("timing %s on %s", case.name, candidate.name)
        with bench.on(plans_on(candidate), cache_dir) as timer:
            return 1e6 * _shortest(lambda: timer.seconds(case))

    with closing(bench):
        yield measure


def _shortest(run: Callable[[], float]) -> float:
    """Of several runs, as many as a second allows: neighbours only ever slow a step down."""
    times = [run()]
    while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and sum(times) < MEASURE_SECONDS):
        times.append(run())
    return min(times)
