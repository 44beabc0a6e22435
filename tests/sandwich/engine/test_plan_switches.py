"""Plan switches: counted while there is work, from one phase's native call to the other's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sandwich.engine.stats import SWITCH_BOUNDS_S, Durations
from sandwich.executor.base import Batch, LazyStart, NativeTime, StepOutput

if TYPE_CHECKING:
    from tests.sandwich.engine.conftest import AuditingExecutor, Driver

Drive = Callable[..., "Driver"]
GAP_S, CALL_S = 2**-14, 1.0  # exact in binary


class Clocked(LazyStart):
    """Every native call takes CALL_S and begins GAP_S after the last."""

    def __init__(self, executor: AuditingExecutor) -> None:
        self.limits = executor.limits
        self._executor = executor
        self._now = 0.0

    def run(self, batch: Batch) -> StepOutput:
        started = self._now + GAP_S
        self._now = started + CALL_S
        return self._executor.run(batch)._replace(native=NativeTime(started, self._now))

    def close(self) -> None:
        self._executor.close()


@pytest.fixture
def driver(drive: Drive) -> Driver:
    made = drive()
    made.engine.executor = Clocked(made.executor)
    return made


def test_each_change_of_the_phase_is_counted_with_the_time_it_took(driver: Driver) -> None:
    driver.add(2, max_tokens=5)
    driver.step()
    driver.add(30, max_tokens=1)
    driver.run()
    assert [phase for phase, _ in driver.chunks()] == ["prefill"] + ["decode", "prefill"] * 4
    switches = driver.engine.stats.plan_switches
    assert sum(switches.counts) == 8
    assert switches.total_seconds == 8 * GAP_S


def test_steps_of_one_phase_are_no_switches(driver: Driver) -> None:
    driver.add(20, max_tokens=1)
    driver.run()
    assert sum(driver.engine.stats.plan_switches.counts) == 0


def test_time_without_work_is_no_switch(driver: Driver) -> None:
    for _ in range(2):
        driver.add(2, max_tokens=2)
        driver.run()
    assert sum(driver.engine.stats.plan_switches.counts) == 2


def test_an_executor_without_native_calls_has_no_switches(drive: Drive) -> None:
    driver = drive()
    driver.add(2, max_tokens=5)
    driver.run()
    assert driver.engine.stats.num_phase_switches == 1
    assert sum(driver.engine.stats.plan_switches.counts) == 0


def test_durations_are_counted_up_to_their_bounds() -> None:
    durations = Durations((1.0, 2.0))
    for seconds in (0.0, 1.0, 1.5, 2.0, 2.5, 9.0):
        durations.add(seconds)
    assert durations.counts == [2, 2, 2]
    assert durations.total_seconds == 16.0
    assert sorted(SWITCH_BOUNDS_S) == list(SWITCH_BOUNDS_S)
