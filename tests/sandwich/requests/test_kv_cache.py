"""The KV cache: sharing, copies, room and what is left when requests end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sandwich.requests.kv_cache import Copies, KvCache, num_common_tokens
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams

BLOCK = 4


def request(tokens: Sequence[int], salt: str = "", prompt_logprobs: int | None = None) -> Request:
    params = SamplingParams(prompt_logprobs=prompt_logprobs)
    return Request("r", tokens, params, cache_salt=salt)


def admit(cache: KvCache, tokens: Sequence[int], salt: str = "") -> tuple[Request, Copies]:
    """A request with room for its tokens, and the copies it asked for; nothing is computed yet."""
    made = request(tokens, salt)
    prefix = cache.room(made)
    assert prefix is not None
    copies = cache.admit(made, prefix)
    for source, _ in copies:
        cache.release(source)
    return made, copies


def compute(cache: KvCache, made: Request, num_tokens: int | None = None) -> Request:
    made.num_computed = made.num_tokens if num_tokens is None else num_tokens
    cache.publish(made, with_tail=True)
    return made


def test_a_request_shares_whole_blocks_and_copies_the_one_in_which_they_part() -> None:
    cache = KvCache(8, BLOCK)
    first = compute(cache, admit(cache, range(10))[0])
    second, copies = admit(cache, [*range(7), 99, 99])
    assert second.num_computed == 7
    assert second.block_table.ids[0] == first.block_table.ids[0]
    assert copies == [(first.block_table.ids[1], second.block_table.ids[1])]
    assert not set(second.block_table.ids[1:]) & set(first.block_table.ids)
    cache.check_integrity([first, second])


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 9])
def test_of_a_prompt_that_is_there_the_last_token_is_computed_again(num_tokens: int) -> None:
    cache = KvCache(16, BLOCK)
    compute(cache, admit(cache, range(num_tokens))[0])
    second, _ = admit(cache, range(num_tokens))
    assert second.num_computed == num_tokens - 1


def test_what_an_ended_request_computed_is_found_and_what_it_did_not_compute_is_not() -> None:
    cache = KvCache(16, BLOCK)
    ended = compute(cache, admit(cache, range(11))[0], num_tokens=6)
    cache.free(ended)
    assert cache.num_used == 0
    assert admit(cache, range(20))[0].num_computed == 6


def test_requests_that_want_the_prompt_scored_skip_nothing_of_it() -> None:
    cache = KvCache(16, BLOCK)
    cache.free(compute(cache, admit(cache, range(9))[0]))
    prefix = cache.find(request(range(9), prompt_logprobs=0))
    assert cache.num_tokens(prefix) == 0
    resumed = request(range(9), prompt_logprobs=0)
    resumed.prompt_logprobs = [None] * 5  # type: ignore[list-item]  # scores of five tokens
    assert cache.num_tokens(cache.find(resumed)) == 5
    resumed.prompt_logprobs = [None] * 8  # type: ignore[list-item]  # of all
    assert cache.num_tokens(cache.find(resumed)) == 8


def test_another_salt_finds_nothing() -> None:
    cache = KvCache(16, BLOCK)
    compute(cache, admit(cache, range(9), "a")[0])
    assert admit(cache, range(9), "b")[0].num_computed == 0
    assert admit(cache, range(9), "a")[0].num_computed == 8


def test_without_sharing_nothing_is_found_and_ended_blocks_are_free() -> None:
    cache = KvCache(16, BLOCK, shares_prefixes=False)
    cache.free(compute(cache, admit(cache, range(9))[0]))
    assert cache.num_used == 0
    assert admit(cache, range(9))[0].num_computed == 0


def test_two_who_compute_the_same_end_up_with_the_same_blocks() -> None:
    cache = KvCache(16, BLOCK)
    (first, _), (second, _) = admit(cache, range(9)), admit(cache, range(9))
    assert not set(first.block_table.ids) & set(second.block_table.ids)
    stamp = second.block_table.stamp
    compute(cache, first)
    compute(cache, second)
    assert first.block_table.ids[:2] == second.block_table.ids[:2]
    assert first.block_table.ids[2] != second.block_table.ids[2]
    assert second.block_table.stamp != stamp
    assert cache.num_used == 4
    cache.check_integrity([first, second])


def test_a_tail_goes_on_growing_after_others_have_copied_it() -> None:
    cache = KvCache(16, BLOCK)
    first = compute(cache, admit(cache, range(6))[0])
    second = compute(cache, admit(cache, [*range(6), 50, 51, 52])[0])
    for token_id in (60, 61, 62):
        first.accept(token_id, now=0.0)
    cache.grow(first.block_table, first.num_tokens)
    compute(cache, first)
    third, copies = admit(cache, [*range(6), 60, 61, 62, 63])
    assert third.num_computed == 9
    assert [source for source, _ in copies] == [first.block_table.ids[2]]
    cache.check_integrity([first, second, third])


def test_the_tail_of_an_earlier_turn_is_dropped_when_a_later_one_has_it_too() -> None:
    cache = KvCache(16, BLOCK)
    cache.free(compute(cache, admit(cache, range(6))[0]))
    later = compute(cache, admit(cache, range(12))[0])
    cache.free(later)
    assert len(list(cache._tree.nodes())) == 3
    cache.check_integrity([])


def test_a_request_that_needs_every_block_is_admitted_without_the_copy() -> None:
    cache = KvCache(2, BLOCK)
    cache.free(compute(cache, admit(cache, range(6))[0]))
    made = request([*range(5), 9, 9])
    prefix = cache.room(made)
    assert prefix is not None
    assert prefix.copied is None
    assert cache.admit(made, prefix) == []
    assert made.num_computed == 4
    cache.check_integrity([made])


def test_idle_blocks_are_room_but_those_that_are_shared_are_not() -> None:
    cache = KvCache(4, BLOCK)
    cache.free(compute(cache, admit(cache, range(16))[0]))
    assert cache.num_available == 4
    assert cache.room(request(range(100, 116))) is not None
    assert cache.room(request([*range(8), *range(50, 58)])) is not None
    assert cache.room(request([*range(8), *range(50, 58)]), num_spare=1) is None


@pytest.mark.parametrize(
    ("one", "other", "length"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1)]
)
def test_common_tokens_are_counted_from_the_first(
    one: list[int], other: list[int], length: int
) -> None:
    a, b = (request([*tokens, 0]).token_ids[: len(tokens)] for tokens in (one, other))
    assert num_common_tokens(a, b) == length
