"""Targets and priorities over a simulated machine, whose steps cost what a formula says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codegen.spec import Phase
from sandwich.engine.pace import SMALLEST_CHUNK, Pace, TargetPace, Targets
from schedules.mixed.plan import MixedMode, MixedPlan
from schedules.step_costs import PhaseCosts, StepCosts, chunk_keys

if TYPE_CHECKING:
    from sandwich.executor.base import Batch
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]
BOTH = (MixedMode.TURNS, MixedMode.RIDE)
MOST_TOKENS = 512


def true_seconds(phase: Phase, num_tokens: int, num_keys: int) -> float:
    """Much like 1B on two cores: weights are read in 40 ms, a prompt token takes 4 ms."""
    if phase is Phase.DECODE:
        return 0.040 + 0.001 * num_tokens + 1e-6 * num_keys
    return max(0.045, 0.004 * num_tokens) + 1e-7 * num_keys


def costs(error: float = 1.0) -> StepCosts:
    """Predictions that are too low by a factor."""

    def of(phase: Phase, sizes: Sequence[int]) -> PhaseCosts:
        return PhaseCosts.of(
            sizes, 1000, lambda rows, keys: true_seconds(phase, rows, rows * keys) / error
        )

    sizes = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    return StepCosts(of(Phase.PREFILL, sizes), of(Phase.DECODE, sizes[:6]))


@dataclass
class Machine:
    """A clock that a step moves by what it costs."""

    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def run(self, batch: Batch) -> None:
        keys = sum(map(chunk_keys, batch.starts, batch.num_new))
        self.now += true_seconds(batch.phase, batch.num_tokens, keys)


@dataclass
class Simulation:
    """A driver over the machine, and requests that come at their times."""

    driver: Driver
    machine: Machine

    @staticmethod
    def of(drive: Drive, pace: Pace | None, mixed: MixedPlan | None = None) -> Simulation:
        machine = Machine()
        sizes = {
            "block_size": 32,
            "num_blocks": 2048,
            "max_num_seqs": 32,
            "max_num_batched_tokens": MOST_TOKENS,
            "max_model_len": 4096,
        }
        driver = drive((), mixed or MixedPlan(), False, pace, machine.clock, **sizes)
        driver.executor.watch = machine.run
        return Simulation(driver, machine)

    def run(self, arrivals: Sequence[tuple[float, dict[str, Any]]]) -> None:
        """Requests at their times, in order, until the last has ended."""
        pending = list(arrivals)
        while pending or self.driver.engine.has_work():
            if not self.driver.engine.has_work():
                self.machine.now = max(self.machine.now, pending[0][0])
            while pending and pending[0][0] <= self.machine.now:
                self.driver.add(**pending.pop(0)[1])
            self.driver.step()

    def share(self, tpot: float, ttft: float = np.inf) -> float:
        """Of the requests, how many kept both."""
        kept = [self.tpot(n) <= tpot and self.ttft(n) <= ttft for n in self.driver.requests]
        return float(np.mean(kept))

    def tpot(self, name: str) -> float:
        timings = self.driver.timings(name)
        assert timings.first_token is not None
        assert timings.last_token is not None
        return (timings.last_token - timings.first_token) / max(1, timings.num_output_tokens - 1)

    def ttft(self, name: str) -> float:
        timings = self.driver.timings(name)
        assert timings.first_token is not None
        return timings.first_token - timings.arrival


def poisson(rate: float, count: int, prompt: int, reply: int) -> list[tuple[float, dict[str, Any]]]:
    rng = np.random.default_rng(7)
    times = np.cumsum(rng.exponential(1 / rate, count))
    lengths = rng.integers(prompt // 2, prompt * 3 // 2, count)
    return [
        (float(at), {"prompt": [int(at) % 90] * int(length), "max_tokens": reply})
        for at, length in zip(times, lengths, strict=True)
    ]


# A request costs 1.2 s of prefill and shares of decode steps: about 70 % of what is possible.
LOAD = poisson(rate=0.35, count=40, prompt=300, reply=30)


@pytest.mark.parametrize("error", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("modes", [BOTH, BOTH[:1], BOTH[1:]], ids=["both", "turns", "ride"])
def test_both_targets_are_kept_where_that_can_be_whatever_the_cost_model_thinks_at_first(
    drive: Drive, error: float, modes: Sequence[MixedMode]
) -> None:
    targets = Targets(tpot_s=0.15, ttft_s=10.0)
    simulation = Simulation.of(drive, TargetPace(costs(error), targets, modes, MOST_TOKENS))
    simulation.run(LOAD)
    assert simulation.share(targets.tpot_s, 10.0) >= 0.95


def test_goodput_is_more_than_that_of_whole_chunks(drive: Drive) -> None:
    targets = Targets(tpot_s=0.1, ttft_s=10.0)
    paced = Simulation.of(drive, TargetPace(costs(), targets, BOTH, MOST_TOKENS))
    paced.run(LOAD)
    fixed = Simulation.of(drive, None, MixedPlan(MixedMode.TURNS, MOST_TOKENS))
    fixed.run(LOAD)
    assert paced.share(0.1, 10.0) >= 1.5 * fixed.share(0.1, 10.0)


def test_prompts_use_the_tokens_that_came_early_when_they_would_be_late(drive: Drive) -> None:
    shares = []
    for ttft_s in (None, 2.0):
        targets = Targets(tpot_s=0.1, ttft_s=ttft_s)
        simulation = Simulation.of(drive, TargetPace(costs(), targets, BOTH[:1], MOST_TOKENS))
        old = {"prompt": [1] * 20, "max_tokens": 120}
        simulation.run([(0.0, old), (3.0, {"prompt": [2] * 330, "max_tokens": 2})])
        assert simulation.tpot("r0") <= 0.1
        shares.append(simulation.ttft("r1"))
    assert shares[1] <= 2.0 < shares[0]


def test_nobody_starves_when_no_target_can_be_kept(drive: Drive) -> None:
    pace = TargetPace(costs(), Targets(tpot_s=0.001, ttft_s=0.001), BOTH, MOST_TOKENS)
    simulation = Simulation.of(drive, pace)
    simulation.run([(0.0, {"prompt": [n] * 100, "max_tokens": 20}) for n in range(6)])
    batches = simulation.driver.executor.batches
    prefills = [b.num_tokens - b.num_riders for b in batches if b.phase is Phase.PREFILL]
    assert sum(prefills) == 600
    assert min(prefills[:-1]) >= SMALLEST_CHUNK or len(prefills) == 1
    decoding = [request for b in batches if b.phase is Phase.DECODE for request in b.requests]
    assert decoding


def test_a_prompt_alone_is_prefilled_in_whole_chunks(drive: Drive) -> None:
    pace = TargetPace(costs(), Targets(tpot_s=0.05), BOTH, MOST_TOKENS)
    simulation = Simulation.of(drive, pace)
    simulation.run([(0.0, {"prompt": [1] * 1100, "max_tokens": 1})])
    assert simulation.driver.chunks() == [("prefill", [512]), ("prefill", [512]), ("prefill", [76])]


# ---- priorities ----


def finished(driver: Driver) -> list[str]:
    return sorted(driver.requests, key=lambda name: driver.timings(name).finished)


def test_a_lower_priority_value_goes_first_and_waiting_makes_up_for_it(drive: Drive) -> None:
    machine = Machine()
    driver = drive((), MixedPlan(), False, None, machine.clock, max_num_seqs=1)
    driver.executor.watch = machine.run
    for name, at, priority in (("a", 0.0, 0), ("b", 1.0, 2), ("c", 2.0, -1), ("d", 30.0, 0)):
        machine.now = at
        driver.add([1, 2], name, priority=priority, max_tokens=1)
    driver.run()
    # b counts as one that came at 21, before d
    assert finished(driver) == ["c", "a", "b", "d"]


@pytest.mark.parametrize("sizes", [{"max_num_seqs": 1}, {"num_blocks": 5, "max_model_len": 20}])
def test_an_urgent_request_takes_the_place_of_others_which_are_recomputed(
    drive: Drive, sizes: dict[str, int]
) -> None:
    driver = drive((), MixedPlan(), True, **sizes)
    slow = driver.add([1] * 9, max_tokens=6, priority=1)
    for _ in range(3):
        driver.step()
    urgent = driver.add([2] * 9, max_tokens=6)
    driver.run()
    assert driver.requests[slow].num_preemptions >= 1
    assert finished(driver) == [urgent, slow]
    assert driver.tokens(slow) == driver.executor.continuation([1] * 9, 6)
