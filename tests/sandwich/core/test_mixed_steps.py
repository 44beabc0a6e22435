"""Work of both phases at once: riding in prefill steps, chunks while others wait."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from schedules.mixed import MixedMode, MixedPlan

if TYPE_CHECKING:
    from tests.sandwich.core.conftest import Driver

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
    with caplog.at_level(logging.DEBUG, "sandwich.engine"):
        driver.run()
    steps = driver.engine.stats.steps
    assert {kind.value: (s.num_steps, s.num_tokens) for kind, s in steps.items()} == {
        "prefill": (1, 1),
        "decode": (0, 0),
        "mixed": (2, 11),
    }
    assert caplog.messages[0].startswith("mixed: 2 requests (1 of them decode), 8 tokens")
