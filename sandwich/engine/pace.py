"""Whose turn it is: how many prompt tokens the next step takes, and whether decode tokens ride.

Two targets bound what a user waits for: the time to the first token (TTFT) and the time from token
to token (TPOT, of a request the mean). While both kinds of work are there, a chunk of a prompt may
take as long as the decoding requests can wait. They can wait until the next token is due at a
steady pace; where prompts would miss their TTFT otherwise, also for as long as the tokens that came
early allow. Sarathi-Serve (arXiv 2403.02310) bounds chunks by the TPOT alone, by their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from codegen.spec import Phase
from sandwich.executor.base import Batch, StepKind
from sandwich.requests.request import Request
from schedules.mixed.plan import MixedMode, MixedPlan
from schedules.step_costs import StepCosts, chunk_keys

MOST_GAP: Final = 4.0  # no token comes later after the one before it than so many TPOT targets
SMALLEST_CHUNK: Final = 16  # of a prompt, however late the others are: nobody starves
MOST_LOOKED_AT: Final = 32  # prompts of the queue whose TTFT is foreseen
HOST_SHARE: Final = 0.05  # of a target is left to what a prediction does not see


class Turn(NamedTuple):
    """The next step: a decode step if `num_tokens`, the most prompt tokens, is 0."""

    num_tokens: int
    rides: bool = False  # decode tokens in a step with prompt tokens


class Load(NamedTuple):
    """What there is to do, first come first; `now` as time.monotonic()."""

    decoding: Sequence[Request]
    prefilling: Sequence[Request]
    waiting: Sequence[Request]
    last: StepKind | None  # what the step before was
    now: float


class Pace(Protocol):
    """Decides about turns; told of every step that ran by itself."""

    def turn(self, load: Load) -> Turn: ...

    def learn(self, batch: Batch, seconds: float) -> None: ...

    def token_cost(self, position: int) -> float:
        """What it costs to compute a token at a position, in any unit."""


class FixedPace:
    """Turns and chunks as the mixed plan says, whatever they take."""

    def __init__(self, mixed: MixedPlan, most_tokens: int) -> None:
        self._mixed, self._most_tokens = mixed, most_tokens

    def turn(self, load: Load) -> Turn:
        """The phases alternate, or decode rides in every prefill step."""
        chunk = self._most_tokens
        if self._mixed.chunk_tokens and load.decoding:
            chunk = min(chunk, self._mixed.chunk_tokens)
        if self._mixed.mode is MixedMode.RIDE:
            return Turn(chunk, rides=True)
        is_decode = load.last is StepKind.PREFILL or self._mixed.mode is MixedMode.CORUN
        return Turn(0) if is_decode and load.decoding else Turn(chunk)

    def learn(self, batch: Batch, seconds: float) -> None:
        """Nothing is predicted."""

    def token_cost(self, position: int) -> float:
        """One token is as good as another."""
        return 1.0


@dataclass(frozen=True)
class Targets:
    """Seconds that users shall wait at most; None: as short as the other allows."""

    tpot_s: float
    ttft_s: float | None = None


class TargetPace:
    """Chunks that keep the targets, as far as the costs of steps can be foreseen.

    modes: whether decode may ride, may take turns, or whichever costs less.
    """

    def __init__(
        self, costs: StepCosts, targets: Targets, modes: Iterable[MixedMode], most_tokens: int
    ) -> None:
        self._costs, self._targets = costs, targets
        self._modes = frozenset(modes)
        self._most_tokens = most_tokens

    def turn(self, load: Load) -> Turn:
        """The largest chunk for which the decoding requests can wait. If they can wait for none, a
        decode step and the smallest chunk take turns.
        """
        if not load.decoding:
            return Turn(self._most_tokens)
        steady = self._turn(load, self._wait(load, is_hurried=False))
        if not self._is_late(load, steady):
            return steady
        return self._turn(load, self._wait(load, is_hurried=True))

    def learn(self, batch: Batch, seconds: float) -> None:
        """Correct the costs of such steps."""
        keys = sum(map(chunk_keys, batch.starts, batch.num_new))
        self._costs.learn(batch.phase, batch.num_tokens, keys, seconds)

    def token_cost(self, position: int) -> float:
        """Seconds; late tokens attend to more keys."""
        return self._costs.token_cost(position)

    def _wait(self, load: Load, is_hurried: bool) -> float:
        """Seconds from now until the first of the decoding requests must have its next token."""
        tpot = self._targets.tpot_s * (1 - HOST_SHARE)
        return min(_due(request, tpot, is_hurried) for request in load.decoding) - load.now

    def _turn(self, load: Load, wait_s: float) -> Turn:
        context = sum(request.num_tokens for request in load.decoding)
        start = load.prefilling[0].num_computed if load.prefilling else 0
        count = len(load.decoding)

        def fitting(limit_s: float, num_riders: int) -> int:
            keys = context if num_riders else 0
            most = self._most_tokens - num_riders
            return self._costs.most_tokens(Phase.PREFILL, limit_s, most, num_riders, keys, start)

        decode_s = self._costs.seconds(Phase.DECODE, count, context)
        riding = fitting(wait_s, count) if MixedMode.RIDE in self._modes else 0
        apart = fitting(wait_s - decode_s, 0) if MixedMode.TURNS in self._modes else 0
        if max(riding, apart) >= SMALLEST_CHUNK:
            return self._cheaper(riding, apart, decode_s, count, context, start)
        if load.last is not StepKind.DECODE:
            return Turn(0)
        return Turn(SMALLEST_CHUNK, rides=MixedMode.RIDE in self._modes)

    def _cheaper(
        self, riding: int, apart: int, decode_s: float, count: int, context: int, start: int
    ) -> Turn:
        """Of the two kinds of chunks that can be waited for, that of which a token costs less, the
        decode step it saves or needs included.
        """
        if riding < SMALLEST_CHUNK or apart < SMALLEST_CHUNK:
            return Turn(riding, rides=True) if riding > apart else Turn(apart)
        keys = context + chunk_keys(start, riding)
        ride_s = self._costs.seconds(Phase.PREFILL, riding + count, keys)
        apart_s = self._costs.seconds(Phase.PREFILL, apart, chunk_keys(start, apart)) + decode_s
        return Turn(riding, rides=True) if ride_s / riding < apart_s / apart else Turn(apart)

    def _is_late(self, load: Load, turn: Turn) -> bool:
        """Whether a prompt would miss its TTFT if all steps were as this one."""
        if self._targets.ttft_s is None:
            return False
        context = sum(request.num_tokens for request in load.decoding)
        step_s = self._costs.seconds(Phase.DECODE, len(load.decoding), context)
        if turn.num_tokens:
            riders = len(load.decoding) if turn.rides else 0
            keys = chunk_keys(0, turn.num_tokens) + (context if riders else 0)
            chunk_s = self._costs.seconds(Phase.PREFILL, turn.num_tokens + riders, keys)
            step_s = chunk_s if riders else step_s + chunk_s
        end = load.now
        seconds_per_token = step_s / max(turn.num_tokens, SMALLEST_CHUNK)
        prompts = [*load.prefilling, *load.waiting][:MOST_LOOKED_AT]
        for request in prompts:
            end += (request.num_tokens - request.num_computed) * seconds_per_token
            if end > request.arrival_time + self._targets.ttft_s * (1 - HOST_SHARE):
                return True
        return False


def _due(request: Request, tpot_s: float, is_hurried: bool) -> float:
    """When the request must have its next token: at a steady pace behind the last one or, if others
    are in a hurry, when its mean reaches the target. One that is behind catches up at twice the
    pace.
    """
    assert request.first_token_time is not None
    assert request.last_token_time is not None
    last = request.last_token_time
    at_mean = request.first_token_time + request.num_output_tokens * tpot_s
    latest = last + (MOST_GAP if is_hurried else 1.0) * tpot_s
    return min(max(at_mean, last + tpot_s / 2), latest)
