"""What it costs to hand a job from the engine's thread to another launcher and hear of its end."""

from __future__ import annotations

import time
from contextlib import closing
from statistics import median

from sandwich.executor.launcher import Launcher
from schedules.plan import PlanPair

NUM_HAND_OVERS = 1000
HAND_OVER_GAP_S = 1e-4  # between two of them, so that they are waited for as in a server


def hand_over_us(plans: PlanPair) -> dict[str, float]:
    """From a thread on the first CPU of decode to a launcher on those of prefill, there and back.

    Plans on the same cores share a launcher, which the engine's thread is itself: none is made.
    """
    there, back = [], []
    with (
        closing(Launcher("hand-over", plans.prefill.cpus)) as target,
        closing(Launcher("engine", plans.decode.cpus[:1])) as engine,
    ):

        def hand_over() -> None:
            for _ in range(NUM_HAND_OVERS):
                started = time.perf_counter()
                job = target.run(lambda: None)
                ended = time.perf_counter()
                there.append(1e6 * (job.started - started))
                back.append(1e6 * (ended - job.ended))
                while time.perf_counter() < ended + HAND_OVER_GAP_S:
                    pass

        engine.run(hand_over)
    return {"there": median(there), "back": median(back)}
