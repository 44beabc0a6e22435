"""The engine: ends, failures, timings and counters, over the audited null executor."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from sandwich.errors import InvalidRequestError, UnsoundExecutorError
from sandwich.executor.base import StepKind

if TYPE_CHECKING:
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]


def test_tokens_come_one_event_at_a_time_and_the_last_one_ends(drive: Drive) -> None:
    driver = drive()
    expected = driver.executor.continuation([1, 2, 3], 3)
    name = driver.add([1, 2, 3], max_tokens=3)
    driver.run()
    events = driver.events[name]
    assert [event.token_ids for event in events] == [(id_,) for id_ in expected]
    assert [event.finish_reason for event in events] == [None, None, "length"]
    assert [event.logprobs for event in events] == [()] * 3


@pytest.mark.parametrize("position", [0, 1, 5])
@pytest.mark.parametrize("kind", ["eos", "stop_token_ids"])
def test_a_stop_id_ends_a_request_and_is_its_last_token(
    drive: Drive, position: int, kind: str
) -> None:
    driver = drive()
    expected = driver.executor.continuation([1, 2], 9)
    assert len(set(expected)) == 9
    stops: dict[str, Any] = {kind: [expected[position], 96]}
    name = driver.add([1, 2], max_tokens=9, **stops)
    driver.run()
    assert driver.tokens(name) == expected[: position + 1]
    assert driver.end(name).finish_reason == "stop"
    assert driver.end(name).stop_reason == (None if kind == "eos" else expected[position])


def test_ignore_eos_goes_on_and_stop_ids_still_stop(drive: Drive) -> None:
    driver = drive()
    expected = driver.executor.continuation([1, 2], 5)
    through = driver.add([1, 2], eos=expected[:1], ignore_eos=True, max_tokens=5)
    stopped = driver.add(
        [1, 2], eos=expected[:1], ignore_eos=True, max_tokens=5, stop_token_ids=expected[2:3]
    )
    driver.run()
    assert driver.tokens(through) == expected
    assert driver.tokens(stopped) == expected[:3]


def test_a_stop_on_the_last_token_counts_as_a_stop(drive: Drive) -> None:
    driver = drive()
    expected = driver.executor.continuation([1, 2], 3)
    name = driver.add([1, 2], max_tokens=3, stop_token_ids=expected[2:])
    driver.run()
    assert driver.end(name).finish_reason == "stop"


def test_min_tokens_keeps_eos_away_until_there_are_enough(drive: Drive) -> None:
    driver = drive()
    first = driver.executor.continuation([1, 2], 1)
    name = driver.add([1, 2], eos=first, min_tokens=3, max_tokens=8)
    driver.run()
    assert len(driver.tokens(name)) >= 3
    assert driver.tokens(name)[0] != first[0]


def test_zero_max_tokens_ends_after_the_prompt_without_a_token(drive: Drive) -> None:
    driver = drive(max_model_len=48)
    names = [driver.add(length, max_tokens=0) for length in (1, 9, 48)]
    driver.run()
    for name in names:
        (event,) = driver.events[name]
        assert (event.token_ids, event.finish_reason) == ((), "length")
    assert driver.engine.stats.num_generated_tokens == 0


def test_a_failing_executor_ends_its_batch_and_the_engine_lives_on(drive: Drive) -> None:
    driver = drive(failing_runs=[2], max_num_seqs=2)
    first, second = driver.add([1], max_tokens=5), driver.add([2], max_tokens=5)
    third = driver.add([3], max_tokens=5)
    driver.run()
    for name in (first, second):
        assert driver.end(name).finish_reason == "error"
        assert "decode step failed" in (driver.end(name).error or "")
        assert "injected failure of run 2" in (driver.end(name).error or "")
        assert len(driver.tokens(name)) == 2
    assert driver.tokens(third) == driver.executor.continuation([3], 5)
    assert driver.engine.stats.num_finished == {"error": 2, "length": 1}


def test_after_a_failure_the_executor_proves_itself_before_the_next_step(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(failing_runs=[2], max_num_seqs=1)
    proofs: list[tuple[int, int]] = []

    def prove(block_id: int) -> None:
        held = [id_ for request in driver.requests.values() for id_ in request.block_table.ids]
        assert block_id not in held
        proofs.append((driver.executor.num_runs, block_id))

    monkeypatch.setattr(driver.executor, "prove", prove)
    driver.add([1], max_tokens=5)
    driver.add([2], max_tokens=5)
    driver.run()
    assert [num_runs for num_runs, _ in proofs] == [3]


def test_an_executor_that_fails_to_prove_itself_ends_the_engine(
    drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive(failing_runs=[0])
    driver.add([1], max_tokens=5)

    def prove(block_id: int) -> None:
        raise UnsoundExecutorError("it gives another token")

    monkeypatch.setattr(driver.executor, "prove", prove)
    driver.step()
    driver.add([2], max_tokens=5)
    with pytest.raises(UnsoundExecutorError):
        driver.step()


def test_a_failing_prefill_leaves_those_that_decode_alone(drive: Drive) -> None:
    driver = drive(failing_runs=[1])
    old = driver.add([1], max_tokens=4)
    driver.step()
    driver.engine.scheduler._last = StepKind.DECODE  # it is prefill's turn
    young = driver.add([2], max_tokens=4)
    driver.run()
    assert driver.end(young).finish_reason == "error"
    assert driver.tokens(old) == driver.executor.continuation([1], 4)


@pytest.mark.parametrize(
    ("prompt", "params", "param"),
    [
        ([1, 97], {}, "prompt"),
        ([-1], {}, "prompt"),
        ([1], {"logit_bias": {97: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": [5, 97]}, "stop_token_ids"),
    ],
)
def test_ids_beyond_the_vocabulary_are_refused(
    drive: Drive, prompt: list[int], params: dict[str, Any], param: str
) -> None:
    driver = drive()
    with pytest.raises(InvalidRequestError, match="from 0 to 96") as caught:
        driver.add(prompt, **params)
    assert caught.value.param == param
    assert not driver.engine.has_work()


def test_without_work_a_step_does_nothing(drive: Drive) -> None:
    driver = drive()
    assert not driver.engine.has_work()
    assert driver.step() == []
    assert driver.executor.num_runs == 0


def test_close_closes_the_executor_once(drive: Drive) -> None:
    driver = drive()
    driver.engine.close()
    driver.engine.close()
    assert driver.executor.is_closed


def test_times_are_in_order_and_survive_a_preemption(drive: Drive) -> None:
    driver = drive(num_blocks=4, max_model_len=16)
    names = [driver.add(3, max_tokens=12) for _ in range(2)]
    driver.run()
    assert driver.engine.stats.num_preemptions
    for name in names:
        timings = driver.timings(name)
        assert timings.first_scheduled is not None
        assert timings.first_token is not None
        assert timings.last_token is not None
        assert timings.arrival <= timings.first_scheduled <= timings.first_token
        assert timings.first_token <= timings.last_token <= timings.finished
        assert (timings.num_prompt_tokens, timings.num_output_tokens) == (3, 12)


def test_a_request_that_never_ran_has_no_times(drive: Drive) -> None:
    driver = drive()
    name = driver.add(3)
    driver.abort(name)
    timings = driver.timings(name)
    assert (timings.first_scheduled, timings.first_token, timings.last_token) == (None, None, None)
    assert timings.num_output_tokens == 0


def test_counters_add_up(drive: Drive) -> None:
    driver = drive()
    expected = driver.executor.continuation([1] * 10, 3)
    driver.add([1] * 10, max_tokens=3)
    driver.add([1] * 10, max_tokens=9, eos=expected[1:2])
    driver.abort(driver.add(5))
    driver.run()
    stats = driver.engine.stats
    assert stats.num_prompt_tokens == 20
    assert stats.num_generated_tokens == 5
    assert stats.num_finished == {"length": 1, "stop": 1, "abort": 1}
    prefill, decode = stats.steps[StepKind.PREFILL], stats.steps[StepKind.DECODE]
    assert prefill.num_tokens == 20
    assert prefill.num_steps + decode.num_steps == driver.executor.num_runs
    assert decode.num_tokens == 3
    for kind in (prefill, decode):
        assert 0 < kind.run_seconds < kind.step_seconds


def test_the_debug_log_has_one_line_per_step(
    drive: Drive, caplog: pytest.LogCaptureFixture
) -> None:
    driver = drive()
    driver.add(10, max_tokens=2)
    with caplog.at_level(logging.DEBUG, "sandwich.engine.engine"):
        driver.run()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == [
        "prefill: 1 requests",
        "prefill: 1 requests",
        "decode: 1 requests",
    ]
