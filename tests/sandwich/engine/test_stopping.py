"""A step whose prompts are nobody's any more is stopped, and nothing of it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from schedules.mixed.plan import MixedMode, MixedPlan

if TYPE_CHECKING:
    from sandwich.executor.base import Batch
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]
RIDE = MixedPlan(MixedMode.RIDE)


def announce_in_run(driver: Driver, number: int, *names: str) -> None:
    """Announce that requests will be aborted while run `number` is under way."""

    def watch(batch: Batch) -> None:
        if len(driver.executor.batches) == number + 1:
            for name in names:
                driver.engine.announce_abort(name)

    driver.executor.watch = watch


def test_a_chunk_of_an_aborted_prompt_leaves_no_trace(drive: Drive) -> None:
    driver = drive(shares_prefixes=True)
    name = driver.add([3] * 20, max_tokens=2)
    driver.step()
    announce_in_run(driver, 1, name)
    assert driver.step() == []
    assert driver.requests[name].num_computed == 8  # of the first chunk
    driver.abort(name)
    again = driver.add([3] * 20, max_tokens=2)
    driver.run()
    assert driver.timings(again).num_cached_tokens == 8
    assert driver.tokens(again) == driver.executor.continuation([3] * 20, 2)


def test_riders_of_a_stopped_step_have_their_token_in_the_next(drive: Drive) -> None:
    driver = drive(mixed=RIDE)
    rider = driver.add([1, 2], max_tokens=6)
    driver.step()
    name = driver.add([5] * 12, max_tokens=2)
    announce_in_run(driver, 1, name)
    driver.step()
    assert driver.chunks()[1][0] == "mixed"
    assert len(driver.tokens(rider)) == 1
    driver.abort(name)
    driver.run()
    assert driver.tokens(rider) == driver.executor.continuation([1, 2], 6)


def test_a_step_that_others_need_goes_on(drive: Drive) -> None:
    driver = drive()
    gone, stays = driver.add([3] * 3, max_tokens=2), driver.add([4] * 3, max_tokens=2)
    announce_in_run(driver, 0, gone)
    assert len(driver.step()) == 2
    driver.abort(gone)
    driver.run()
    assert driver.tokens(stays) == driver.executor.continuation([4] * 3, 2)


def test_an_abort_announced_before_the_step_stops_it_too(drive: Drive) -> None:
    driver = drive()
    name = driver.add([3] * 20, max_tokens=2)
    driver.engine.announce_abort(name)
    assert driver.step() == []
    assert driver.requests[name].num_computed == 0
    driver.abort(name)
    driver.run()


def test_decode_steps_are_not_stopped(drive: Drive) -> None:
    driver = drive()
    name = driver.add([3], max_tokens=9)
    driver.step()
    announce_in_run(driver, 1, name)
    assert len(driver.step()) == 1
    driver.abort(name)
    driver.run()


@pytest.mark.parametrize("is_last", [False, True])
def test_a_chunk_in_flight_is_stopped(drive: Drive, is_last: bool) -> None:
    driver = drive(mixed=MixedPlan(MixedMode.CORUN, prefill_cpus=(0,), decode_cpus=(1,)))
    old = driver.add([1, 2], max_tokens=20)
    driver.step()
    young = driver.add([6] * 20, max_tokens=2)
    driver.step()
    assert (
        driver.executor.num_runs == 2
    )  # a token of the old one; the chunk has not been waited for
    driver.engine.announce_abort(young)
    driver.abort(young)
    if is_last:
        driver.abort(old)
    driver.run()
    assert not driver.engine.has_work()
    assert driver.tokens(young) == []
    assert is_last or driver.tokens(old) == driver.executor.continuation([1, 2], 20)
