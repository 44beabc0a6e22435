"""Two engines take turns at the same work: A B, B A, A B ... and the ratio is taken pair by pair.

The machine's limits are sampled in every round. Nobody works while the other does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from bench.peers.engine import AbsentError, Engine, Threads
from bench.peers.work import Work
from schedules.meters import Meter

SWEEP = (Work("prefill", 128), Work("decode", 128, steps=8))


def thread_counts(num_cores: int, num_cpus: int) -> tuple[int, ...]:
    """What is worth trying: half of the cores, all of them, and every logical CPU."""
    return tuple(sorted({max(1, num_cores // 2), num_cores, num_cpus}))


def sweep(engine: Engine, counts: Sequence[int]) -> None:
    """Give each phase the number of threads that was fastest in a short trial."""
    seconds: dict[str, dict[int, float]] = {}
    for count in counts:
        engine.threads = Threads(count, count)
        for work in SWEEP:
            seconds.setdefault(work.kind, {})[count] = engine.seconds(work)
    best = {kind: min(tried, key=lambda c: tried[c]) for kind, tried in seconds.items()}
    engine.threads = Threads(best["prefill"], best["decode"])
    engine.settings["threads"] = {
        kind: {"best": best[kind], "seconds": {str(c): s for c, s in tried.items()}}
        for kind, tried in seconds.items()
    }


def compare(
    ours: Engine, peer: Engine, work: Work, num_rounds: int, meters: dict[str, Meter]
) -> dict[str, Any]:
    """A row of the result: seconds of both in every round, and what their ratio is.

    AbsentError if the peer cannot do this work.
    """
    for engine in (peer, ours):
        engine.seconds(work)  # warm-up
    times: dict[str, list[float]] = {ours.name: [], peer.name: []}
    limits: dict[str, list[float]] = {name: [] for name in meters}
    for i in range(num_rounds):
        for engine in (ours, peer) if i % 2 == 0 else (peer, ours):
            times[engine.name].append(engine.seconds(work))
        for name, meter in meters.items():
            limits[name].append(meter.sample())
    ours_seconds, peer_seconds = times[ours.name], times[peer.name]
    ratios = [b / a for a, b in zip(ours_seconds, peer_seconds, strict=True)]
    return {
        "ours_seconds": ours_seconds,
        "peer_seconds": peer_seconds,
        "ours_tok_per_s": work.tokens_per_second(statistics.median(ours_seconds)),
        "peer_tok_per_s": work.tokens_per_second(statistics.median(peer_seconds)),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "ratio_quartiles": quartiles(ratios),
        "limits": {name: statistics.median(samples) for name, samples in limits.items()},
    }


def quartiles(values: Sequence[float]) -> list[float]:
    """The middle half of the values; the value twice if there is one alone."""
    if len(values) == 1:
        return [values[0], values[0]]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]


def or_absent(do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is done, or the words of a peer that cannot."""
    try:
        return do()
    except AbsentError as error:
        return {"absent": error.message}
