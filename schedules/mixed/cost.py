"""The time of mixed plans: what each mode, chunk and split of the cores does to a typical load.

Some sequences decode when a prompt arrives; the cost model of a step says how long the prompt and
their next tokens take meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final

from codegen.layout.model import ModelLayout
from platforms.machine import Machine
from schedules.choice import milliseconds
from schedules.cost import Seats, StepSize, operators, step_cost
from schedules.mixed.plan import MixedMode, MixedPlan
from schedules.rates import MachineRates
from schedules.step_costs import StepCosts, step_costs
from schedules.topotree import MAX_CORE_COUNTS, Candidate

SMALLEST_CHUNK: Final = 16  # tokens; a shorter one reads all weights for little arithmetic
Groups = Sequence[Sequence[int]]


@dataclass(frozen=True)
class MixedLoad:
    """`batch` sequences decode with `context` keys each when a prompt arrives; replies are as long
    as `reply`.
    """

    batch: int = 4
    context: int = 1024
    prompt: int = 512
    reply: int = 128

    def render(self) -> str:
        """For people."""
        return (
            f"{self.batch} sequences of {self.context} tokens decode when a prompt of "
            f"{self.prompt} arrives; replies of {self.reply}"
        )


@dataclass(frozen=True)
class MixedPrediction:
    """A mixed plan and its times, in microseconds, under the load it was rated with."""

    plan: MixedPlan
    tpot_us: float  # from token to token of those that decode, at the end of the prompt
    ttft_us: float  # until the prompt's first token
    request_us: float  # between the ends of two requests when prompts never cease
    measured_us: float | None = None  # as tpot_us; None if nobody did

    def to_json(self) -> dict[str, Any]:
        """JSON types; `predicted_us` and `measured_us` are from token to token."""
        return self.plan.to_json() | {
            "predicted_us": round(self.tpot_us, 1),
            "measured_us": None if self.measured_us is None else round(self.measured_us, 1),
            "predicted_ttft_us": round(self.ttft_us, 1),
            "predicted_request_us": round(self.request_us, 1),
        }

    def render(self) -> str:
        """For people, without the plan."""
        tpot, ttft, request = map(milliseconds, (self.tpot_us, self.ttft_us, self.request_us))
        text = f"TPOT {tpot}, TTFT {ttft}, a request in {request} predicted"
        if self.measured_us is None:
            return text
        return f"{text}, TPOT {milliseconds(self.measured_us)} measured"


@dataclass(frozen=True)
class MixedSpace:
    """What there is to choose from and the model that rates it.

    prefill, decode: the cores of the phases' own plans; weights and KV cache lie on decode's
    nodes. query_tile: tokens of a prompt that share a pass over its keys. max_chunk_tokens: most
    prompt tokens of a step. max_step_tokens: most token rows of a step.
    """

    machine: Machine
    prefill: Candidate
    decode: Candidate
    layout: ModelLayout
    kv_dtype: str
    query_tile: int
    rates: MachineRates
    max_chunk_tokens: int
    max_step_tokens: int
    load: MixedLoad

    def predictions(self) -> Iterator[MixedPrediction]:
        """Every plan there is; none of CORUN where no LLC group has two cores."""
        for chunk in _chunks(self.max_chunk_tokens):
            yield self._turns(chunk)
            yield self._ride(chunk)
            for prefill, decode in _splits(self.prefill.groups):
                yield self._corun(chunk, prefill, decode)

    def _turns(self, chunk: int) -> MixedPrediction:
        prefill = self._prefill(chunk, self.prefill.groups)
        num_chunks = -(-self.load.prompt // chunk)
        ttft = prefill.total_us + (num_chunks - 1) * self._alone_us
        plan = MixedPlan(MixedMode.TURNS, chunk)
        return self._prediction(plan, prefill.last_us + self._alone_us, ttft, num_chunks - 1)

    def _ride(self, chunk: int) -> MixedPrediction:
        chunk = min(chunk, self.max_step_tokens - self.load.batch)
        mixed = self._prefill(chunk, self.prefill.groups, self.load.batch)
        num_chunks = -(-self.load.prompt // chunk)
        plan = MixedPlan(MixedMode.RIDE, chunk)
        return self._prediction(plan, mixed.last_us, mixed.total_us, num_chunks)

    def _corun(self, chunk: int, prefill_groups: Groups, decode_groups: Groups) -> MixedPrediction:
        decode_us = self._step_us(self._decode_step, decode_groups)
        prefill = self._prefill(chunk, prefill_groups)
        slowdown = self._contention(prefill.total_us, chunk, decode_us)
        tpot = decode_us * slowdown
        num_chunks = -(-self.load.prompt // chunk)
        # A chunk that is done waits for the end of the decode step beside it.
        ttft = prefill.total_us * slowdown + num_chunks * tpot / 2
        plan = MixedPlan(
            MixedMode.CORUN,
            chunk,
            prefill_cpus=tuple(chain(*prefill_groups)),
            decode_cpus=tuple(chain(*decode_groups)),
        )
        return self._prediction(plan, tpot, ttft, ttft / tpot)

    def _prediction(
        self, plan: MixedPlan, tpot_us: float, ttft_us: float, num_steps: float
    ) -> MixedPrediction:
        """`num_steps` decode steps are done by the time of the prompt's first token. Each request
        brings a prompt and `reply` decode steps, which `batch` requests share; those that do not
        fit beside the prompt follow it.
        """
        left = max(0.0, self.load.reply / self.load.batch - num_steps)
        return MixedPrediction(plan, tpot_us, ttft_us, ttft_us + left * self._alone_us)

    def _contention(self, prefill_us: float, chunk: int, decode_us: float) -> float:
        """How much longer both take because they share the memory's bandwidth; 1 if it suffices."""
        num_chunks = -(-self.load.prompt // chunk)
        prefill_nbytes = num_chunks * self._nbytes(self._chunk_step(0, chunk, 0))
        wanted_gbps = 1e-3 * prefill_nbytes / prefill_us
        wanted_gbps += 1e-3 * self._nbytes(self._decode_step) / decode_us
        return max(1.0, wanted_gbps / (len(self._home) * self.rates.node_gbps))

    def _prefill(self, chunk: int, groups: Groups, num_riders: int = 0) -> _ChunkTimes:
        """A prompt in chunks. A chunk's time grows evenly with what is in the cache before it."""
        prompt = self.load.prompt
        num_chunks = -(-prompt // chunk)
        length = -(-prompt // num_chunks)
        first, last = (
            self._step_us(self._chunk_step(start, length, num_riders), groups)
            for start in (0, prompt - length)
        )
        return _ChunkTimes(num_chunks * (first + last) / 2, last)

    def _chunk_step(self, start: int, length: int, num_riders: int) -> StepSize:
        """`length` tokens of a prompt behind `start` others, and one of each rider."""
        context = num_riders * self.load.context
        return StepSize(
            num_tokens=length + num_riders,
            num_logits=1 + num_riders,
            num_tiles=-(-length // self.query_tile) + num_riders,
            num_keys=length * start + length * (length + 1) // 2 + context,
            num_cached=start + length + context,
        )

    @cached_property
    def _decode_step(self) -> StepSize:
        return StepSize.decode([self.load.context] * self.load.batch)

    @cached_property
    def _alone_us(self) -> float:
        """A decode step on its own plan."""
        return self._step_us(self._decode_step, self.decode.groups)

    @cached_property
    def _home(self) -> frozenset[int]:
        return frozenset(Seats.of(self.machine, self.decode.groups).nodes)

    def costs(self, most_seqs: int, context: int) -> StepCosts:
        """What steps take, each phase on its own plan, for a batch of up to `most_seqs`."""

        def prefill_us(step: StepSize) -> float:
            return self._step_us(step, self.prefill.groups)

        def decode_us(step: StepSize) -> float:
            return self._step_us(step, self.decode.groups)

        sizes = (self.query_tile, self.max_step_tokens, most_seqs, context)
        return step_costs(prefill_us, decode_us, *sizes)

    def _step_us(self, step: StepSize, groups: Groups) -> float:
        seats = Seats.of(self.machine, groups)
        ops = operators(self.layout, self.kv_dtype, step)
        return step_cost(ops, seats, self.rates, self._home).total_us

    def _nbytes(self, step: StepSize) -> float:
        ops = operators(self.layout, self.kv_dtype, step)
        return ops.nbytes


@dataclass(frozen=True)
class _ChunkTimes:
    """Microseconds of all chunks of a prompt, and of the last."""

    total_us: float
    last_us: float


def _chunks(most: int) -> list[int]:
    """Chunk sizes to try: powers of two and the largest."""
    found = {most}
    size = SMALLEST_CHUNK
    while size < most:
        found.add(size)
        size *= 2
    return sorted(found)


def _splits(groups: Groups) -> Iterator[tuple[Groups, Groups]]:
    """Prefill's and decode's share of each LLC group: decode gets the first cores, as many in every
    group as there are, but never all of them. On the very first the engine's thread lives, which
    is idle while a decode step runs.
    """
    most = max(map(len, groups)) - 1
    for num_decode in range(1, most + 1, -(-most // MAX_CORE_COUNTS) or 1):
        cuts = [min(num_decode, len(group) - 1) for group in groups]
        decode = [group[:cut] for group, cut in zip(groups, cuts, strict=True)]
        prefill = [group[cut:] for group, cut in zip(groups, cuts, strict=True)]
        yield prefill, [group for group in decode if group]
