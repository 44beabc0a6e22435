"""What is in the cache is not computed again: conversations, forks, agents, interruptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from schedules.mixed.plan import MixedMode, MixedPlan

if TYPE_CHECKING:
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]
LARGE = {"num_blocks": 128, "max_model_len": 200, "max_num_batched_tokens": 64}


def num_computed(driver: Driver) -> int:
    """Prompt tokens computed so far."""
    batches = driver.executor.batches
    return sum(b.num_tokens - b.num_riders for b in batches if b.phase == "prefill")


def converse(driver: Driver, past: list[int], more: list[int], **params: Any) -> list[int]:
    """One turn: everything so far and `more`; what there is to say after the reply."""
    name = driver.add([*past, *more], **({"max_tokens": 6} | params))
    driver.run()
    return [*past, *more, *driver.tokens(name)]


@pytest.mark.parametrize("num_others", [0, 3])
def test_a_turn_computes_what_the_turn_before_did_not(drive: Drive, num_others: int) -> None:
    driver = drive(shares_prefixes=True, **LARGE)
    past = converse(driver, [], [5] * 21)
    for turn in range(1, 5):
        for other in range(num_others):
            converse(driver, [], [60 + turn, other] * 7)
        before = num_computed(driver)
        past = converse(driver, past, [turn, 8, 9])
        # its last token was sampled but never computed
        assert num_computed(driver) - before == 3 + 1
    timings = driver.timings(list(driver.requests)[-1])
    assert timings.num_cached_tokens == len(past) - 6 - 4
    assert timings.num_prompt_tokens == len(past) - 6


def test_twenty_interleaved_conversations_keep_their_hits_while_there_is_room(drive: Drive) -> None:
    driver = drive(
        shares_prefixes=True, num_blocks=20 * 13, max_model_len=60, max_num_batched_tokens=64
    )
    pasts = [converse(driver, [], [number + 1] * 20) for number in range(20)]
    for turn in range(3):
        before = num_computed(driver)
        pasts = [converse(driver, past, [turn, 7]) for past in pasts]
        assert num_computed(driver) - before == 20 * 3


@pytest.mark.parametrize("num_stored", [0, 5, 100])
def test_what_there_was_no_room_for_comes_back_from_the_store(
    drive: Drive, num_stored: int
) -> None:
    driver = drive(shares_prefixes=True, num_blocks=12, num_stored=num_stored)
    prompts = [[number, *range(1, 30)] for number in range(40, 46)]
    for prompt in prompts:
        driver.add(prompt, max_tokens=2)
        driver.run()
    for prompt in prompts[::-1]:
        before = num_computed(driver)
        name = driver.add([*prompt, 77], max_tokens=2)
        driver.run()
        assert driver.tokens(name) == driver.executor.continuation([*prompt, 77], 2)
        num_cached = driver.timings(name).num_cached_tokens
        assert num_computed(driver) - before == 31 - num_cached
        if num_stored == 100 and prompt is not prompts[-1]:
            assert num_cached == 28  # whole blocks
    if driver.store is not None:
        assert driver.store.num_restored > 0
        assert driver.engine.stats.store is driver.store


def test_a_store_that_is_slower_than_computing_is_left_alone(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, num_blocks=12, num_stored=100)
    assert driver.store is not None
    driver.store.seconds_per_block = 1e9
    for number in (1, 2, 1):
        driver.add([number] * 40, max_tokens=2)
        driver.run()
    assert driver.store.num_saved > 0
    assert driver.store.num_restored == 0


def test_the_store_keeps_salts_apart(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, num_blocks=12, num_stored=100)
    for salt in ("a", "b", "a"):
        name = driver.add([7] * 41, salt=salt, max_tokens=2)
        driver.run()
        assert driver.timings(name).num_cached_tokens == (40 if name == "r2" else 0)


@pytest.mark.parametrize("prompt_length", [3, 4, 9, 40])
def test_choices_of_one_prompt_share_it(drive: Drive, prompt_length: int) -> None:
    driver = drive(shares_prefixes=True, **LARGE)
    prompt = list(range(prompt_length))
    names = [driver.add(prompt, choice=n, temperature=5.0, seed=1, max_tokens=5) for n in range(4)]
    driver.run()
    shared = 1 if prompt_length > driver.engine.limits.block_size else prompt_length
    assert num_computed(driver) == prompt_length + 3 * shared
    assert len({tuple(driver.tokens(name)) for name in names}) == 4
    cached = [driver.timings(name).num_cached_tokens for name in names]
    assert cached == [0, *[prompt_length - shared] * 3]


def test_prompts_that_arrive_together_compute_what_they_share_once(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, **LARGE | {"max_num_batched_tokens": 8})
    for number in range(4):
        driver.add([*range(20), 90 + number], max_tokens=2)
    driver.run()
    assert num_computed(driver) == 21 + 3


def test_a_preempted_request_goes_on_from_what_is_left_of_it(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, num_blocks=5, max_model_len=20)
    old, young = driver.add([1, 2, 3], max_tokens=12), driver.add([4, 5, 6], max_tokens=12)
    driver.run()
    assert driver.requests[young].num_preemptions >= 1
    num_seen = driver.engine.stats.num_prefix_queries
    assert 0 < driver.engine.stats.num_prefix_hits < num_seen
    for name, prompt in ((old, [1, 2, 3]), (young, [4, 5, 6])):
        assert driver.tokens(name) == driver.executor.continuation(prompt, 12)
        assert driver.timings(name).num_cached_tokens == 0


def test_prompts_to_be_scored_are_computed_whole_and_scored_right(drive: Drive) -> None:
    scores = []
    for shares_prefixes in (False, True):
        driver = drive(shares_prefixes=shares_prefixes, **LARGE)
        converse(driver, [], [7] * 19)
        before = num_computed(driver)
        name = driver.add([7] * 19, prompt_logprobs=2, max_tokens=1)
        driver.run()
        assert num_computed(driver) - before == 19
        scores.append(driver.events[name][0].prompt_logprobs)
    assert scores[0] == scores[1]
    assert scores[0] is not None


def test_a_failed_step_leaves_nothing_behind_that_others_would_find(drive: Drive) -> None:
    driver = drive(failing_runs=[1], shares_prefixes=True, max_num_batched_tokens=8)
    name = driver.add([3] * 20, max_tokens=1)
    driver.run()
    assert driver.end(name).finish_reason == "error"
    converse(driver, [], [3] * 20)  # audited
    assert driver.engine.stats.num_prefix_hits == 8  # the first step had succeeded


def test_a_salt_keeps_a_prompt_from_being_found(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, **LARGE)
    names = [driver.add([2] * 17, salt=salt, max_tokens=1) for salt in ("a", "b", "a", "")]
    driver.run()
    cached = [driver.timings(name).num_cached_tokens for name in names]
    assert cached == [0, 0, 16, 0]


def test_queries_and_hits_are_counted_in_tokens(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, **LARGE)
    for _ in range(3):
        driver.add([2] * 18, max_tokens=1)
        driver.run()
    stats = driver.engine.stats
    assert (stats.num_prefix_queries, stats.num_prefix_hits) == (3 * 18, 2 * 17)


def test_cached_blocks_are_room_for_others(drive: Drive) -> None:
    driver = drive(shares_prefixes=True, num_blocks=4, max_model_len=16, max_num_batched_tokens=16)
    for number in range(5):
        converse(driver, [], [number] * 9)
    assert driver.engine.stats.num_used_blocks == 0
    assert driver.engine.stats.num_preemptions == 0


def test_a_copy_s_source_outlives_the_batch_in_flight(drive: Drive) -> None:
    corun = MixedPlan(MixedMode.CORUN, prefill_cpus=(0,), decode_cpus=(1,))
    driver = drive((), corun, True, num_blocks=6, max_model_len=24)
    converse(driver, [], [1, 2, 3, 4, 5, 6], max_tokens=1)
    old = driver.add([9, 9], max_tokens=12)
    driver.step()
    young = driver.add([1, 2, 3, 4, 5, 7], max_tokens=2)
    driver.step()
    flying = driver.engine.scheduler.in_flight
    assert flying is not None
    assert len(flying.copies) == 1
    driver.executor.patience = 8  # the old one takes every block there is meanwhile
    driver.run()
    assert driver.tokens(old) == driver.executor.continuation([9, 9], 12)
    assert driver.tokens(young) == driver.executor.continuation([1, 2, 3, 4, 5, 7], 2)
