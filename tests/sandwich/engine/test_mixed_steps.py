"""Work of both phases at once: riding in prefill steps, co-running, chunks while others wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from sandwich.engine.scheduler import Scheduler
from schedules.mixed.plan import TAKE_TURNS, MixedMode, MixedPlan

if TYPE_CHECKING:
    from sandwich.executor.base import Batch
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]

RIDE = MixedPlan(MixedMode.RIDE)


@pytest.mark.parametrize(
    ("mode", "chunk_tokens", "chunks"),
    [
        (MixedMode.TURNS, 0, [8, 8, 4]),
        (MixedMode.TURNS, 7, [7, 7, 6]),
        (MixedMode.TURNS, 9, [8, 8, 4]),
        (MixedMode.RIDE, 0, [7, 7, 6]),  # one of the step's 8 tokens is the rider's
        (MixedMode.RIDE, 7, [7, 7, 6]),
        (MixedMode.RIDE, 6, [6, 6, 6, 2]),
    ],
)
def test_chunks_are_short_while_others_decode(
    drive: Drive, mode: MixedMode, chunk_tokens: int, chunks: list[int]
) -> None:
    driver = drive(mixed=MixedPlan(mode, chunk_tokens))
    driver.add(17, max_tokens=20)
    for _ in range(3):
        driver.step()
    assert driver.chunks() == [("prefill", [8]), ("prefill", [8]), ("prefill", [1])]  # alone
    driver.add(20, max_tokens=1)
    driver.run()
    mixed = [lengths for kind, lengths in driver.chunks()[3:] if kind != "decode"]
    assert [lengths[-1] for lengths in mixed] == chunks


def test_every_decoding_request_rides_with_every_chunk(drive: Drive) -> None:
    driver = drive(mixed=RIDE)
    driver.add(2, max_tokens=9)
    driver.add(1, max_tokens=9)
    driver.step()
    driver.add(13, max_tokens=2)
    driver.run()
    assert driver.chunks()[:5] == [
        ("prefill", [2, 1]),
        ("mixed", [1, 1, 6]),
        ("mixed", [1, 1, 6]),
        ("mixed", [1, 1, 1]),
        ("decode", [1, 1, 1]),
    ]
    for name, prompt in (("r0", [1, 2]), ("r1", [1])):
        assert driver.tokens(name) == driver.executor.continuation(prompt, 9)


def test_a_rider_gets_a_token_in_every_step(drive: Drive) -> None:
    driver = drive(mixed=RIDE, num_blocks=64)
    rider = driver.add(1, max_tokens=40)
    driver.step()
    for _ in range(6):
        driver.add(11, max_tokens=3)
    while not driver.requests[rider].is_finished:
        num_tokens = driver.requests[rider].num_tokens
        driver.step()
        assert driver.requests[rider].num_tokens == num_tokens + 1
    driver.run()


def test_a_prompt_goes_on_though_riders_could_fill_the_step(drive: Drive) -> None:
    driver = drive(mixed=RIDE, max_num_seqs=4, max_num_batched_tokens=2, max_num_logits=4)
    for _ in range(3):
        driver.add(1, max_tokens=12)
    while not all(request.num_output_tokens for request in driver.requests.values()):
        driver.step()
    driver.add(5, max_tokens=2, prompt_logprobs=0)
    num_before = len(driver.executor.batches)
    driver.run()
    assert driver.chunks()[num_before : num_before + 5] == [("mixed", [1, 1, 1, 1])] * 5


def test_riders_choose_from_their_logits_while_a_prompt_is_scored(drive: Drive) -> None:
    driver = drive(mixed=RIDE, max_num_logits=4)
    riders = [driver.add([token], max_tokens=9, temperature=1e-3) for token in (1, 2)]
    driver.step()
    name = driver.add(5, max_tokens=1, prompt_logprobs=0)
    driver.run()
    assert driver.chunks()[1] == ("mixed", [1, 1, 5])
    assert len(driver.requests[name].prompt_logprobs) == 4
    for rider, token in zip(riders, (1, 2), strict=True):
        assert driver.tokens(rider) == driver.executor.continuation([token], 9)


def test_a_failed_mixed_step_ends_riders_and_prompts_alike(drive: Drive) -> None:
    driver = drive(failing_runs=[1], mixed=RIDE)
    rider = driver.add(1, max_tokens=5)
    driver.step()
    newcomer = driver.add(2)
    driver.run()
    for name in (rider, newcomer):
        assert "mixed step failed" in (driver.end(name).error or "")


def test_an_aborted_rider_leaves_the_others_alone(drive: Drive) -> None:
    driver = drive(mixed=RIDE)
    rider, other = driver.add(1, max_tokens=9), driver.add([4], max_tokens=6)
    driver.step()
    newcomer = driver.add([5] * 12, max_tokens=3)
    driver.step()
    driver.abort(rider)
    driver.run()
    assert driver.tokens(other) == driver.executor.continuation([4], 6)
    assert driver.tokens(newcomer) == driver.executor.continuation([5] * 12, 3)


def test_the_oldest_riders_growth_preempts_the_youngest_prompt(drive: Drive) -> None:
    driver = drive(mixed=RIDE, num_blocks=6, max_model_len=24, max_num_batched_tokens=3)
    old = driver.add(3, max_tokens=20)
    driver.step()
    young = driver.add(15, max_tokens=2)
    driver.run()
    assert driver.requests[young].num_preemptions >= 1
    assert driver.requests[old].num_preemptions == 0
    assert driver.tokens(old) == driver.executor.continuation([1, 2, 3], 20)
    assert driver.tokens(young) == driver.executor.continuation(range(1, 16), 2)


def test_mixed_steps_are_counted_and_logged_as_such(
    drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    driver = drive(mixed=RIDE)
    driver.add(1, max_tokens=3)
    driver.step()
    driver.add(9, max_tokens=1)
    with caplog.at_level(logging.DEBUG, "sandwich.engine.engine"):
        driver.run()
    steps = driver.engine.stats.steps
    assert {kind.value: (s.num_steps, s.num_tokens) for kind, s in steps.items()} == {
        "prefill": (1, 1),
        "decode": (0, 0),
        "mixed": (2, 11),
    }
    assert caplog.messages[0].startswith("mixed: 2 requests (1 of them decode), 8 tokens")


CORUN = MixedPlan(MixedMode.CORUN, prefill_cpus=(0,), decode_cpus=(1,))


def test_decode_goes_on_beside_the_chunks_of_a_prompt(drive: Drive) -> None:
    driver = drive(mixed=CORUN)  # a chunk lasts as long as two decode steps
    old = driver.add(2, max_tokens=20)
    driver.step()
    young = driver.add(17, max_tokens=3)
    driver.run()
    assert driver.chunks()[:11] == [
        ("prefill", [2]),
        *(("decode", [1]), ("decode", [1]), ("prefill", [8])) * 2,
        *(("decode", [1]), ("decode", [1]), ("prefill", [1])),
        ("decode", [1, 1]),
    ]
    assert driver.tokens(old) == driver.executor.continuation([1, 2], 20)
    assert driver.tokens(young) == driver.executor.continuation(range(1, 18), 3)


def test_steps_side_by_side_are_logged_as_such(
    drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    driver = drive(mixed=CORUN)
    driver.add(2, max_tokens=5)
    driver.step()
    driver.add(7, max_tokens=1)
    with caplog.at_level(logging.DEBUG, "sandwich.engine.engine"):
        driver.run()
    assert [line.split(",")[0] for line in caplog.messages] == [
        "decode: 1 requests side by side",
        "decode: 1 requests side by side",
        "prefill: 1 requests side by side",
        "decode: 1 requests",
        "decode: 1 requests",
    ]


def test_work_of_one_kind_does_not_co_run(drive: Drive) -> None:
    driver = drive(mixed=CORUN)
    driver.add(20, max_tokens=1)
    driver.add(3, max_tokens=2)
    while driver.engine.has_work():
        driver.step()
        assert driver.engine.scheduler.in_flight is None
    assert {kind for kind, _ in driver.chunks()} == {"prefill", "decode"}


def in_flight(drive: Drive, **changes: int) -> tuple[Driver, str, str]:
    """A driver with a request that decodes and one whose first chunk is in flight."""
    driver = drive(mixed=CORUN, **changes)
    old = driver.add(2, max_tokens=20)
    driver.step()
    young = driver.add(20, max_tokens=3)
    driver.step()
    batch = driver.engine.scheduler.in_flight
    assert batch is not None
    assert [request.request_id for request in batch.requests] == [young]
    return driver, old, young


def test_a_chunk_in_flight_is_waited_for_when_nobody_decodes_any_more(drive: Drive) -> None:
    driver, old, young = in_flight(drive)
    driver.executor.patience = 1000
    driver.abort(old)
    num_steps = 0
    while driver.engine.has_work():
        driver.step()
        num_steps += 1
    assert num_steps == 5  # three chunks, two more tokens
    assert driver.tokens(young) == driver.executor.continuation(range(1, 21), 3)


def test_a_request_that_is_aborted_in_flight_keeps_its_blocks_until_the_step_ends(
    drive: Drive,
) -> None:
    driver, old, young = in_flight(drive)
    num_used = driver.engine.stats.num_used_blocks
    (event,) = driver.abort(young)
    assert event.finish_reason == "abort"
    assert driver.engine.stats.num_used_blocks == num_used
    again = driver.add([7] * 5, max_tokens=3)
    driver.run()
    assert driver.tokens(young) == []
    assert driver.tokens(old) == driver.executor.continuation([1, 2], 20)
    assert driver.tokens(again) == driver.executor.continuation([7] * 5, 3)


def test_an_engine_whose_every_request_was_aborted_ends_the_step_in_flight(drive: Drive) -> None:
    driver, old, young = in_flight(drive)
    driver.abort(old)
    driver.abort(young)
    assert driver.engine.has_work()
    assert driver.step() == []
    assert not driver.engine.has_work()
    driver.run()


@pytest.mark.parametrize(("failing", "ended"), [(2, 0), (3, 1)])
def test_a_failure_beside_another_step_ends_one_of_them(
    drive: Drive, failing: int, ended: int
) -> None:
    driver, *names = in_flight(drive)
    driver.executor.failing_runs = frozenset([failing])  # after prefill, decode: decode, the chunk
    driver.run()
    for index, name in enumerate(names):
        assert (driver.end(name).finish_reason == "error") == (index == ended)


def test_a_batch_that_cannot_start_ends_its_requests_at_once(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(mixed=CORUN)
    old = driver.add(2, max_tokens=9)
    driver.step()

    def refuse(batch: Batch) -> None:
        raise RuntimeError("no thread")

    monkeypatch.setattr(driver.executor, "start", refuse)
    young = driver.add(20)
    driver.step()
    assert "no thread" in (driver.end(young).error or "")
    driver.run()
    assert driver.tokens(old) == driver.executor.continuation([1, 2], 9)


def test_a_request_in_flight_is_not_preempted_but_waited_for(drive: Drive) -> None:
    driver, old, young = in_flight(drive, num_blocks=7, max_model_len=28)
    driver.executor.patience = 1000
    while driver.requests[young].num_computed == 0:
        assert driver.requests[young].num_preemptions == 0
        driver.step()
    assert driver.engine.scheduler.cache.num_available == 0
    assert driver.requests[old].num_tokens == 9  # and no slot for the ninth, so it sat out
    driver.step()  # no second chunk before the older request has its slot
    assert driver.requests[young].num_preemptions == 1
    assert driver.requests[old].num_tokens == 10
    driver.run()
    assert driver.requests[old].num_preemptions == 0
    assert driver.tokens(old) == driver.executor.continuation([1, 2], 20)
    assert driver.tokens(young) == driver.executor.continuation(range(1, 21), 3)


@pytest.mark.parametrize("mixed", [TAKE_TURNS, RIDE, CORUN])
def test_a_batch_that_goes_on_is_the_one_that_would_be_made_anew(
    drive: Drive, mixed: MixedPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def story() -> tuple[list[tuple[str, list[int]]], list[list[int]]]:
        driver = drive(mixed=mixed, num_blocks=12, max_num_seqs=3)
        names = [driver.add([1, 2, 3], max_tokens=9), driver.add([4], max_tokens=30)]
        for step in range(60):
            if step == 5:
                names.append(driver.add([7] * 11, max_tokens=12))  # comes while others decode
            if step == 20:
                driver.abort(names[2])
            if step == 22:
                names.append(driver.add([8, 9], max_tokens=30))  # both cannot grow to the end
                names.append(driver.add([5, 5], max_tokens=30))
            driver.step()
        driver.run()
        return driver.chunks(), [driver.tokens(name) for name in names]

    found = story()
    monkeypatch.setattr(Scheduler, "_going_on", lambda self: None)
    assert story() == found
