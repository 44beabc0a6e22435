"""Contestants of the GEMM benchmark take turns, with samples of the limits in between.

Memory and neighbours of a shared machine change within seconds, by a factor of two. So a turn is
short, every round has one of each contestant and of each limit, and figures of one round are
compared with each other alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.gemm.contest import Contestant, RefusedError
from schedules.meters import Meter

TURN_SECONDS = 0.02  # of a contestant, or one call if that takes longer
MIN_ROUNDS = 2
IDLE_STEP_SECONDS = 0.004
MAX_IDLE_STEPS = 100


@dataclass(frozen=True)
class LimitMeters:
    """The meters of what cores can do at most: GB/s read, and GFLOP/s of a type's products."""

    read: Meter
    peak: Meter


@dataclass(frozen=True)
class Turns:
    """Round by round: seconds of a call of each contestant, and the limits, in GB/s and GFLOP/s.

    refusals: what those said who did not take part.
    """

    seconds: dict[str, tuple[float, ...]]
    refusals: dict[str, str]
    read_gbps: tuple[float, ...]
    peak_gflops: tuple[float, ...]


def take_turns(
    contestants: Sequence[Contestant],
    num_rows: int,
    limits: LimitMeters,
    num_rounds: int,
    cell_seconds: float,
) -> Turns:
    """Time all contestants with `num_rows` rows, for that many rounds or seconds.

    Every second round has the opposite order, so that nobody always follows the same one.
    """
    num_calls: dict[str, int] = {}
    refusals: dict[str, str] = {}
    for contestant in contestants:
        try:
            seconds_of_call = contestant.prepare(num_rows)
        except RefusedError as error:
            refusals[contestant.name] = str(error)
        else:
            num_calls[contestant.name] = max(1, round(TURN_SECONDS / seconds_of_call))
    contestants = [c for c in contestants if c.name in num_calls]
    wait_until_idle()
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    read: list[float] = []
    peak: list[float] = []
    started = time.perf_counter()
    for i in range(num_rounds):
        for contestant in contestants if i % 2 == 0 else reversed(contestants):
            calls = num_calls[contestant.name]
            seconds[contestant.name].append(contestant.seconds(calls) / calls)
            wait_until_idle()
        for meter, samples in ((limits.read, read), (limits.peak, peak)):
            samples.append(meter.sample())
            wait_until_idle()
        if i + 1 >= MIN_ROUNDS and time.perf_counter() - started > cell_seconds:
            break
    times = {name: tuple(s) for name, s in seconds.items()}
    return Turns(times, refusals, tuple(read), tuple(peak))


def wait_until_idle() -> None:
    """Return when no thread of this process works: pools spin for up to 0.1 s after a call."""
    for _ in range(MAX_IDLE_STEPS):
        before = time.process_time()
        time.sleep(IDLE_STEP_SECONDS)
        if time.process_time() - before < IDLE_STEP_SECONDS / 4:
            return
