"""Seconds of a step, asked for before every step: a few figures of the cost model, corrected by
what steps took.

A step costs what its token rows cost, which is interpolated between sizes that the cost model was
asked for, and the keys that its tokens attend to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from codegen.spec import Phase
from schedules.cost import StepSize

LEARNING_RATE: Final = 0.25  # weight of the newest step among those of its size
MOST_WRONG: Final = 10.0  # the cost model is not off by more; a step that was stopped may be


@dataclass(frozen=True)
class PhaseCosts:
    """Seconds of steps of one program: of each number of token rows of `sizes` without keys, and of
    a key that a token attends to.
    """

    sizes: tuple[int, ...]  # ascending
    seconds: tuple[float, ...]
    per_key: float

    @staticmethod
    def of(
        sizes: Sequence[int], context: int, seconds_of: Callable[[int, int], float]
    ) -> PhaseCosts:
        """From `seconds_of(rows, context)`, the model's time of a step in which every token attends
        to `context` keys.
        """
        long = seconds_of(sizes[-1], context)
        per_key = max(0.0, long - seconds_of(sizes[-1], 1)) / (sizes[-1] * max(1, context - 1))
        base = tuple(seconds_of(size, 1) - per_key * size for size in sizes)
        return PhaseCosts(tuple(sizes), base, per_key)


class StepCosts:
    """Predicts steps and learns from them; one for an engine.

    Corrections are kept for every size of every program, and for steps in which decode tokens ride.
    """

    def __init__(self, prefill: PhaseCosts, decode: PhaseCosts) -> None:
        self._costs = {Phase.PREFILL: prefill, Phase.DECODE: decode}
        self._corrections = {phase: [1.0] * len(c.sizes) for phase, c in self._costs.items()}
        self._is_measured = {phase: [False] * len(c.sizes) for phase, c in self._costs.items()}

    def seconds(self, phase: Phase, num_tokens: int, num_keys: int) -> float:
        """Of a step of so many token rows that attend to `num_keys` keys, all in all."""
        costs, factors = self._costs[phase], self._corrections[phase]
        keys = costs.per_key * num_keys
        at = min(bisect_left(costs.sizes, num_tokens), len(costs.sizes) - 1)
        upper = (costs.seconds[at] + keys) * factors[at]
        if at == 0 or num_tokens >= costs.sizes[at]:
            return upper * max(1.0, num_tokens / costs.sizes[-1])
        lower = (costs.seconds[at - 1] + keys) * factors[at - 1]
        low, high = costs.sizes[at - 1], costs.sizes[at]
        return lower + (upper - lower) * (num_tokens - low) / (high - low)

    def most_tokens(
        self, phase: Phase, limit_s: float, most: int, num_riders: int, context: int, start: int
    ) -> int:
        """The most prompt tokens, up to `most`, behind `start` others that fit `limit_s` with
        `num_riders` tokens that attend to `context` keys; 0 if none does.
        """
        low, high = 0, most
        while low < high:
            count = (low + high + 1) // 2
            keys = context + chunk_keys(start, count)
            if self.seconds(phase, count + num_riders, keys) <= limit_s:
                low = count
            else:
                high = count - 1
        return low

    def learn(self, phase: Phase, num_tokens: int, num_keys: int, seconds: float) -> None:
        """A step took so long. Sizes that were never measured are corrected like this one."""
        factors, is_measured = self._corrections[phase], self._is_measured[phase]
        ratio = seconds / self.seconds(phase, num_tokens, num_keys)
        ratio = min(max(ratio, 1 / MOST_WRONG), MOST_WRONG)
        sizes = self._costs[phase].sizes
        upper = min(bisect_left(sizes, num_tokens), len(sizes) - 1)
        near = {upper} if num_tokens >= sizes[upper] else {max(0, upper - 1), upper}
        for at in range(len(sizes)):
            if at in near:
                rate = LEARNING_RATE if is_measured[at] else 1.0
                factors[at] *= ratio**rate
                is_measured[at] = True
            elif not is_measured[at]:
                factors[at] *= ratio

    def token_cost(self, position: int) -> float:
        """What a token of a prompt costs at a position, in seconds."""
        costs = self._costs[Phase.PREFILL]
        return costs.seconds[-1] / costs.sizes[-1] + costs.per_key * position


def chunk_keys(start: int, count: int) -> int:
    """Keys that `count` tokens behind `start` others attend to."""
    return count * start + count * (count + 1) // 2


def step_costs(
    prefill_us: Callable[[StepSize], float],
    decode_us: Callable[[StepSize], float],
    query_tile: int,
    most_rows: int,
    most_seqs: int,
    context: int,
) -> StepCosts:
    """From the cost model: microseconds of steps of the prefill and of the decode program.

    most_rows: of a prefill step; most_seqs: of a decode step; context: keys of a long sequence.
    """

    def prefill(rows: int, keys: int) -> float:
        tiles = -(-rows // query_tile)
        return 1e-6 * prefill_us(StepSize(rows, 1, tiles, rows * keys, max(rows, keys)))

    def decode(rows: int, keys: int) -> float:
        return 1e-6 * decode_us(StepSize.decode([keys] * rows))

    return StepCosts(
        PhaseCosts.of(_sizes(most_rows), context, prefill),
        PhaseCosts.of(_sizes(most_seqs), context, decode),
    )


def _sizes(most: int) -> list[int]:
    """Powers of two and the largest."""
    return sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power < most)})
