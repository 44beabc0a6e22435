"""Who runs when: chunks, turns, admission, preemption, refusal. Every batch is audited."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from sandwich.errors import ContextLengthError, InvalidRequestError
from sandwich.requests.request import Request, SampledTokens
from sandwich.requests.sampling_params import SamplingParams

if TYPE_CHECKING:
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]


@pytest.mark.parametrize(
    ("num_tokens", "chunks"),
    [(1, [1]), (7, [7]), (8, [8]), (9, [8, 1]), (16, [8, 8]), (17, [8, 8, 1]), (47, [8] * 5 + [7])],
)
def test_a_prompt_is_prefilled_in_chunks_of_the_token_limit(
    drive: Drive, num_tokens: int, chunks: list[int]
) -> None:
    driver = drive()
    driver.add(num_tokens, max_tokens=1)
    driver.run()
    assert driver.chunks() == [("prefill", [chunk]) for chunk in chunks]


def test_prompts_fill_a_step_to_the_last_token(drive: Drive) -> None:
    driver = drive()
    for num_tokens in (3, 4, 5, 1):
        driver.add(num_tokens, max_tokens=1)
    driver.run()
    assert driver.chunks() == [("prefill", [3, 4, 1]), ("prefill", [4, 1])]


def test_prefill_and_decode_take_turns_while_there_is_work_of_both(drive: Drive) -> None:
    driver = drive()
    driver.add(2, max_tokens=5)
    driver.step()
    driver.add(30, max_tokens=1)
    driver.run()
    assert [phase for phase, _ in driver.chunks()] == ["prefill"] + ["decode", "prefill"] * 4
    assert driver.engine.stats.num_phase_switches == 8


def test_decode_runs_every_sequence_that_is_ready(drive: Drive) -> None:
    driver = drive()
    for _ in range(4):
        driver.add(2, max_tokens=3)
    driver.run()
    assert driver.chunks() == [
        ("prefill", [2, 2, 2, 2]),
        ("decode", [1, 1, 1, 1]),
        ("decode", [1, 1, 1, 1]),
    ]


def test_no_more_than_the_limit_of_sequences_run_at_once(drive: Drive) -> None:
    driver = drive(max_num_seqs=2)
    names = [driver.add(1, max_tokens=2) for _ in range(5)]
    driver.run()
    assert max(len(lengths) for _, lengths in driver.chunks()) == 2
    first_seen = [driver.timings(name).first_scheduled or 0.0 for name in names]
    assert first_seen == sorted(first_seen)


def test_the_first_to_come_is_the_first_to_be_admitted(drive: Drive) -> None:
    driver = drive(num_blocks=8)  # 32 tokens
    long, short = driver.add(20, max_tokens=8), driver.add(24, max_tokens=1)
    tiny = driver.add(1, max_tokens=1)  # would fit at once, but must not overtake
    driver.run()
    batches = driver.executor.batches
    order = [request.request_id for batch in batches for request in batch.requests]
    assert order.index(long) < order.index(short) < order.index(tiny)
    assert driver.timings(long).finished <= (driver.timings(short).first_scheduled or 0.0)


@pytest.mark.parametrize("max_tokens", [None, 1, 100])
def test_a_prompt_of_the_model_s_length_is_refused_and_one_shorter_is_not(
    drive: Drive, max_tokens: int | None
) -> None:
    driver = drive(max_model_len=48, num_blocks=16)
    message = r"48 tokens.*model's length is 48.*shorten"
    with pytest.raises(ContextLengthError, match=message) as error:
        driver.add(48, max_tokens=max_tokens)
    assert error.value.code == "context_length_exceeded"
    assert not driver.engine.has_work()
    name = driver.add(47, max_tokens=max_tokens)
    driver.run()
    assert len(driver.tokens(name)) == 1
    assert driver.end(name).finish_reason == "length"


def test_a_request_longer_than_the_cache_is_refused_at_once(drive: Drive) -> None:
    driver = drive(max_model_len=48, num_blocks=3)
    with pytest.raises(ContextLengthError, match=r"12 tokens.*KV cache holds 12.*--kv-cache-size"):
        driver.add(12)
    name = driver.add(11, max_tokens=None)
    driver.run()
    assert len(driver.tokens(name)) == 1


@pytest.mark.parametrize(("max_tokens", "num_got"), [(None, 38), (100, 38), (38, 38), (37, 37)])
def test_max_tokens_is_clipped_to_what_fits_the_model(
    drive: Drive, max_tokens: int | None, num_got: int
) -> None:
    driver = drive(max_model_len=48)
    name = driver.add(10, max_tokens=max_tokens)
    driver.run()
    assert len(driver.tokens(name)) == num_got
    assert driver.end(name).finish_reason == "length"


def test_a_request_that_reaches_the_cache_s_end_finishes_with_length(drive: Drive) -> None:
    driver = drive(num_blocks=5)
    name = driver.add(7, max_tokens=40)
    driver.run()
    assert len(driver.tokens(name)) == 13
    assert driver.end(name).finish_reason == "length"


def test_an_empty_prompt_is_refused(drive: Drive) -> None:
    with pytest.raises(InvalidRequestError, match="0 tokens"):
        drive().add([])


def test_an_id_in_use_is_refused_and_free_again_after_its_end(drive: Drive) -> None:
    driver = drive()
    driver.add(3, "twin")
    with pytest.raises(InvalidRequestError, match="'twin' is in use"):
        driver.add(3, "twin")
    driver.run()
    driver.engine.add_request(Request("twin", [1], SamplingParams()))


def test_the_youngest_gives_way_and_is_recomputed(drive: Drive) -> None:
    driver = drive(num_blocks=4, max_model_len=16)
    old, young = driver.add([1, 2, 3], max_tokens=12), driver.add([4, 5, 6], max_tokens=12)
    driver.run()
    assert driver.requests[old].num_preemptions == 0
    assert driver.requests[young].num_preemptions >= 1
    assert driver.engine.stats.num_preemptions == driver.requests[young].num_preemptions
    assert driver.tokens(old) == driver.executor.continuation([1, 2, 3], 12)
    assert driver.tokens(young) == driver.executor.continuation([4, 5, 6], 12)
    assert driver.timings(young).num_preemptions == driver.requests[young].num_preemptions


def test_a_preempted_request_prefills_prompt_and_output_again(drive: Drive) -> None:
    driver = drive(num_blocks=4, max_model_len=16, max_num_batched_tokens=16)
    driver.add(3, max_tokens=12)
    young = driver.add(3, max_tokens=12)
    while not driver.requests[young].num_preemptions:
        driver.step()
    num_tokens = driver.requests[young].num_tokens
    assert num_tokens > 3
    assert driver.engine.scheduler.waiting[0] is driver.requests[young]
    driver.run()
    assert ("prefill", [num_tokens]) in driver.chunks()


def test_a_newcomer_waits_until_the_running_have_a_block_to_grow(drive: Drive) -> None:
    driver = drive(num_blocks=4, max_model_len=16)
    driver.add(8, max_tokens=1)
    driver.add(4, max_tokens=1)
    driver.step()
    assert len(driver.engine.scheduler.running) <= 1
    driver.add(4, max_tokens=1)
    assert driver.engine.stats.num_waiting == 2
    driver.run()


def test_an_abort_ends_waiting_and_running_requests_once(drive: Drive) -> None:
    driver = drive(max_num_seqs=1)
    running, waiting = driver.add(20, max_tokens=9), driver.add(3)
    driver.step()  # the first is in the middle of its prompt
    for name in (waiting, running):
        (event,) = driver.abort(name)
        assert (event.finish_reason, event.token_ids) == ("abort", ())
        assert driver.abort(name) == []
    assert not driver.engine.has_work()
    assert driver.abort("never heard of") == []
    assert driver.step() == []
    driver.run()


def test_a_request_aborted_while_its_step_runs_gets_no_token(drive: Drive) -> None:
    driver = drive()
    name, other = driver.add(2), driver.add(3)
    scheduler = driver.engine.scheduler
    batch = scheduler.schedule()
    assert batch is not None
    driver.abort(name)
    events = scheduler.commit(batch, [SampledTokens((5,)), SampledTokens((6,))])
    assert [(event.request_id, event.token_ids) for event in events] == [(other, (6,))]
    scheduler.check_integrity()


@pytest.mark.parametrize(
    ("params", "taken", "reason"),
    [
        ({"max_tokens": 9}, (5, 6, 7), None),
        ({"max_tokens": 2}, (5, 6), "length"),
        ({"max_tokens": 9, "stop_token_ids": [6]}, (5, 6), "stop"),
    ],
)
def test_a_step_may_accept_several_tokens_up_to_the_one_that_ends(
    drive: Drive, params: dict[str, Any], taken: tuple[int, ...], reason: str | None
) -> None:
    driver = drive()
    driver.add(2, **params)
    scheduler = driver.engine.scheduler
    batch = scheduler.schedule()
    assert batch is not None
    (event,) = scheduler.commit(batch, [SampledTokens((5, 6, 7))])
    assert (event.token_ids, event.finish_reason) == (taken, reason)
    assert driver.engine.stats.num_generated_tokens == len(taken)
    scheduler.check_integrity()


def test_prompts_are_scored_in_as_few_steps_as_they_are_computed(drive: Drive) -> None:
    driver = drive(max_num_logits=4)
    wanting, plain = driver.add(10, prompt_logprobs=0), driver.add(2)
    driver.run()
    assert driver.chunks()[:2] == [("prefill", [8]), ("prefill", [2, 2])]
    assert len(driver.requests[wanting].prompt_logprobs) == 9
    assert driver.tokens(plain) == driver.executor.continuation([1, 2], 4)


def test_a_one_token_prompt_is_prefill_work(drive: Drive) -> None:
    driver = drive()
    driver.add(1, max_tokens=2)
    driver.run()
    assert driver.chunks() == [("prefill", [1]), ("decode", [1])]


def test_gauges_follow_the_requests(drive: Drive) -> None:
    driver = drive(max_num_seqs=1)
    stats = driver.engine.stats
    driver.add(6, max_tokens=2)
    driver.add(1, max_tokens=1)
    assert (stats.num_waiting, stats.num_running, stats.num_used_blocks) == (2, 0, 0)
    driver.step()
    assert (stats.num_waiting, stats.num_running, stats.num_used_blocks) == (1, 1, 2)
    assert stats.kv_cache_usage == 2 / 16
    driver.run()
    assert (stats.num_waiting, stats.num_running, stats.num_used_blocks) == (0, 0, 0)
