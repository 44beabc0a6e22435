"""Choosing a token: the exact distribution of `choose`, the random stream, rows apart from rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from codegen.spec import Phase
from sandwich.engine.batching import build_batch
from sandwich.engine.sampler import (
    Sampler,
    UniformStream,
    choose,
    draw,
    draw_in_nucleus,
    nucleus,
    weight_before,
)
from sandwich.executor.base import StepOutput
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams

if TYPE_CHECKING:
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]
Probs = npt.NDArray[np.float64]

NUM_DRAWS = 4000
NUM_POINTS = 1000
CHI_SQUARE_7_AT_1_PER_MILLE = 24.32  # seven degrees of freedom


def slow_distribution(row: npt.NDArray[np.float32], params: SamplingParams) -> Probs:
    """Temperature, then top_k, min_p, top_p by full sorts in float64; the truth of `choose`."""
    scaled = row.astype(np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    order = np.lexsort((np.arange(len(row)), -row))
    if params.top_k:
        probs[order[params.top_k :]] = 0.0
    probs[probs < params.min_p * probs.max()] = 0.0
    probs /= probs.sum()
    if params.top_p < 1.0:
        num_kept = np.searchsorted(np.cumsum(probs[order]), params.top_p) + 1
        probs[order[num_kept:]] = 0.0
    return probs / probs.sum()


def at(uniform: float, seed: int = 0) -> Callable[[int], float]:
    """That for the first attempt, others for later ones."""
    others = np.random.default_rng(seed)
    return lambda attempt: uniform if attempt == 0 else float(others.random())


def distribution(row: npt.NDArray[np.float32], params: SamplingParams) -> Probs:
    """What `choose` gives over evenly spaced uniforms: each token has one interval of them, and a
    share of what first attempts miss.
    """
    uniforms = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
    chosen = [choose(row, params, at(float(uniform), i)) for i, uniform in enumerate(uniforms)]
    return np.bincount(chosen, minlength=len(row)) / NUM_POINTS


LOGITS = np.array([0.5, 2.0, -1.0, 1.5, 2.5, -3.0, 0.0, 1.0], np.float32)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 5.0},
        {"temperature": 100.0},
        {"top_k": 1},
        {"top_k": 3},
        {"top_k": 8},
        {"top_k": 9},
        {"top_p": 1e-9},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"top_p": 0.999999},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"top_k": 4, "top_p": 0.8},
        {"top_k": 5, "min_p": 0.3, "top_p": 0.7, "temperature": 1.7},
    ],
)
def test_the_distribution_is_that_of_a_full_sort(params: dict[str, Any]) -> None:
    wanted = SamplingParams(**params)
    expected = slow_distribution(LOGITS, wanted)
    found = distribution(LOGITS, wanted)
    assert np.abs(found - expected).max() <= 1.5 / NUM_POINTS
    assert ((found > 0) <= (expected > 0)).all()


@pytest.mark.parametrize("vocab_size", [255, 256, 257, 1000, 9000])
@pytest.mark.parametrize("params", [{}, {"top_k": 20}, {"top_p": 0.8}, {"min_p": 0.05}])
def test_a_long_row_is_drawn_from_like_a_short_one(vocab_size: int, params: dict[str, Any]) -> None:
    row = (np.random.default_rng(3).standard_normal(vocab_size) * 3).astype(np.float32)
    wanted = SamplingParams(**params)
    expected = slow_distribution(row, wanted)
    found = distribution(row, wanted)
    missed = 1 - wanted.top_p if vocab_size > 4096 else 0.0  # by first attempts
    tolerance = 1.5 / NUM_POINTS + 5 * np.sqrt(missed * expected / NUM_POINTS)
    assert (np.abs(found - expected) <= tolerance).all()
    assert ((found > 0) <= (expected > 0)).all()


def test_top_k_of_one_is_greedy_also_among_equals() -> None:
    row = np.array([1.0, 3.0, 3.0, 3.0], np.float32)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert choose(row, SamplingParams(top_k=1), at(uniform)) == 1


def test_a_banned_token_is_never_drawn() -> None:
    row = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], np.float32)
    for params in ({}, {"top_k": 4}, {"top_p": 0.999}, {"min_p": 0.1}):
        found = distribution(row, SamplingParams(**params))
        assert np.flatnonzero(found).tolist() == [1, 3]


def test_a_vocabulary_of_one_token_has_one_choice() -> None:
    assert choose(np.zeros(1, np.float32), SamplingParams(top_p=0.5, top_k=1), at(0.9)) == 0


def test_the_smallest_temperature_that_is_not_greedy_picks_the_largest() -> None:
    row = np.array([1.0, 1.5, 1e30, -1e30], np.float32)
    assert choose(row, SamplingParams(temperature=1e-5), at(0.999)) == 2


@given(
    np_st.arrays(np.float32, st.integers(1, 600), elements=st.floats(0, 1, width=32)),
    st.floats(1e-6, 0.9999),
)
def test_a_nucleus_is_the_shortest_prefix_of_the_sorted_weights(
    values: npt.NDArray[np.float32], top_p: float
) -> None:
    values[0] = 1.0
    order = np.lexsort((np.arange(len(values)), -values))
    sums = np.cumsum(values[order], dtype=np.float64)
    kept = nucleus(values, top_p)
    assert len(set(kept.tolist())) == len(kept)
    assert set(kept.tolist()) == set(order[: len(kept)].tolist())
    slack = 1e-9 * sums[-1]  # sums in another order differ in their last bits
    assert sums[len(kept) - 1] >= top_p * sums[-1] - slack
    assert len(kept) == 1 or sums[len(kept) - 2] <= top_p * sums[-1] + slack


@given(
    np_st.arrays(
        np.float32, st.integers(1, 600), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
    ),
    st.integers(0, 599),
)
def test_what_comes_before_a_weight_is_larger_or_equal_and_earlier(
    values: npt.NDArray[np.float32], index: int
) -> None:
    index %= len(values)
    order = np.lexsort((np.arange(len(values)), -values)).tolist()
    before = order[: order.index(index)]
    assert weight_before(values, index) == values[before].sum(dtype=np.float64)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
def test_draws_in_a_nucleus_are_those_from_it(top_p: float) -> None:
    weights = np.exp(np.random.default_rng(5).standard_normal(500)).astype(np.float32)
    weights /= weights.max()
    kept = nucleus(weights, top_p)
    stream = UniformStream()
    drawn = [
        draw_in_nucleus(weights, top_p, partial(stream, 7, 0, index)) for index in range(20_000)
    ]
    assert set(drawn) <= set(kept.tolist())
    expected = weights[kept] / weights[kept].sum() * len(drawn)
    found = np.bincount(drawn, minlength=len(weights))[kept]
    deviation = ((found - expected) ** 2 / expected).sum()
    assert deviation < len(kept) + 5 * np.sqrt(2 * len(kept))  # chi-square, five sigmas


@pytest.mark.parametrize("num_weights", [1, 2, 255, 256, 257, 512, 513, 5000])
def test_a_draw_walks_the_running_sum_of_equal_weights(num_weights: int) -> None:
    weights = np.ones(num_weights, np.float32)
    for index in {0, 1 % num_weights, num_weights // 2, num_weights - 1}:
        assert draw(weights, (index + 0.5) / num_weights) == index
    assert draw(weights, 0.0) == 0
    assert draw(weights, 1 - 2**-53) == num_weights - 1


def test_the_largest_uniform_still_draws_a_weight_that_is_there() -> None:
    rng = np.random.default_rng(0)
    for num_weights in rng.integers(1, 600, 300).tolist():
        weights = rng.random(num_weights, dtype=np.float32) ** 8
        weights[num_weights // 2 + 1 :] = 0.0
        assert weights[draw(weights, 1 - 2**-53)] > 0


@given(
    np_st.arrays(np.float32, st.integers(1, 700), elements=st.floats(0, 1, width=32)),
    st.floats(0, 1, exclude_max=True),
)
def test_a_draw_never_gives_a_weight_of_zero(
    weights: npt.NDArray[np.float32], uniform: float
) -> None:
    weights[len(weights) // 2] = 1.0
    assert weights[draw(weights, uniform)] > 0


@pytest.mark.parametrize(("seed", "choice", "index"), [(0, 0, 0), (7, 1, 5), (2**64 - 1, 3, 10**6)])
def test_the_stream_is_philox_keyed_by_seed_and_choice(seed: int, choice: int, index: int) -> None:
    key = np.array([seed, choice], np.uint64)
    word = int(np.random.Philox(key=key, counter=[index, 0, 0, 0]).random_raw())
    stream = UniformStream()
    stream(1, 2, 3)  # what was drawn before does not matter
    assert stream(seed, choice, index) == (word >> 11) / 2**53


def test_the_stream_is_even_and_its_neighbours_are_unrelated() -> None:
    stream = UniformStream()
    by_index = np.array([stream(0, 0, index) for index in range(4000)])
    by_seed = np.array([stream(seed, 0, 0) for seed in range(4000)])
    by_choice = np.array([stream(0, choice, 0) for choice in range(4000)])
    by_attempt = np.array([stream(0, 0, 0, attempt) for attempt in range(4000)])
    for numbers in (by_index, by_seed, by_choice, by_attempt):
        counts = np.bincount((numbers * 8).astype(int), minlength=8)
        assert chi_square(counts, np.full(8, 1 / 8)) < CHI_SQUARE_7_AT_1_PER_MILLE
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.05


def chi_square(counts: npt.NDArray[np.int64], probs: Probs) -> float:
    expected = probs * counts.sum()
    return float((((counts - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("seed", range(5))
def test_seeded_tokens_follow_the_softmax(seed: int) -> None:
    stream, params = UniformStream(), SamplingParams(temperature=1.3)
    tokens = [choose(LOGITS, params, partial(stream, seed, 0, index)) for index in range(NUM_DRAWS)]
    counts = np.bincount(tokens, minlength=8)
    assert chi_square(counts, slow_distribution(LOGITS, params)) < CHI_SQUARE_7_AT_1_PER_MILLE


def test_the_same_seed_gives_the_same_tokens_whatever_the_batch(drive: Drive) -> None:
    sampled: dict[str, Any] = {"temperature": 20.0, "seed": 11, "max_tokens": 12}
    alone = drive()
    alone.add([1, 2, 3], "a", **sampled)
    expected = alone.run().tokens("a")
    assert expected != alone.executor.continuation([1, 2, 3], 12)
    crowded = drive(max_num_seqs=3)
    crowded.add([9, 9], "b", temperature=20.0, seed=5, max_tokens=9)
    crowded.add([1, 2, 3], "a", **sampled)
    crowded.add([7] * 13, "c", max_tokens=20)
    assert crowded.run().tokens("a") == expected


def test_a_token_depends_on_the_row_the_seed_and_its_index_only() -> None:
    params = SamplingParams(seed=3)
    for prompt, output in (([1], []), ([1, 2, 3], []), ([1], [4, 5]), ([1, 2, 3], [5, 4])):
        request = Request("r", prompt, params, choice_index=1)
        for token_id in output:
            request.accept(token_id, now=0.0)
        batch = build_batch(Phase.PREFILL, [request], [request.num_tokens])
        step = StepOutput(LOGITS[None], [4], [2.5])
        (token,) = Sampler().sample(step, batch)
        assert token.token_ids == (
            choose(LOGITS, params, partial(UniformStream(), 3, 1, len(output))),
        )


def test_other_seeds_and_other_choices_give_other_tokens(drive: Drive) -> None:
    driver = drive()
    names = [
        driver.add([1], seed=seed, choice=choice, temperature=50.0, max_tokens=12)
        for seed in (1, 2)
        for choice in (0, 1)
    ]
    driver.run()
    assert len({tuple(driver.tokens(name)) for name in names}) == 4


def test_one_broken_row_ends_its_request_and_no_other(drive: Drive) -> None:
    for params in ({}, {"temperature": 1.0, "top_p": 0.9}, {"logprobs": 2}, {"min_tokens": 2}):
        driver = drive()
        good, bad = driver.add([1, 2], **params), driver.add([3, 4], **params)
        driver.step()
        driver.executor.poisoned.add(bad)
        driver.run()
        assert driver.end(bad).finish_reason == "error"
        assert "nan" in (driver.end(bad).error or "")
        assert len(driver.tokens(bad)) == 1
        assert (driver.end(good).finish_reason, len(driver.tokens(good))) == ("length", 4)


def test_a_bug_in_the_sampler_costs_one_request(drive: Drive) -> None:
    driver = drive()
    good = driver.add([1, 2])
    bad = driver.add([3, 4], temperature=1.0)
    driver.requests[bad].choice_index = -1  # Philox takes no negative key
    driver.run()
    assert "sampling failed" in (driver.end(bad).error or "")
    assert driver.tokens(good) == driver.executor.continuation([1, 2], 4)


def test_logprobs_are_of_the_raw_logits_and_of_the_chosen_token(drive: Drive) -> None:
    driver = drive()
    name = driver.add([1, 2], logprobs=2, logit_bias={50: 100.0}, max_tokens=2)
    driver.run()
    assert driver.tokens(name) == [50, 50]
    for event, position in zip(driver.events[name], (1, 2), strict=True):
        (entry,) = event.logprobs
        assert entry.token_id == 50
        assert entry.rank > 1
        last = np.array([[2], [50]][position - 1], np.int32)
        likeliest = driver.executor.next_tokens(last, np.array([position], np.int32))[0]
        assert entry.top_ids[0] == likeliest
        assert len(entry.top_ids) == len(entry.top_logprobs) == 2


@pytest.mark.parametrize("num_prompt_tokens", [1, 2, 8, 9, 20])
@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_prompt_logprobs_cover_the_prompt_over_any_number_of_chunks(
    drive: Drive, num_prompt_tokens: int, max_tokens: int
) -> None:
    driver = drive(max_num_logits=5)
    prompt = list(range(10, 10 + num_prompt_tokens))
    name = driver.add(prompt, prompt_logprobs=1, max_tokens=max_tokens)
    driver.run()
    first, *later = driver.events[name]
    assert all(event.prompt_logprobs is None for event in later)
    entries = first.prompt_logprobs
    assert entries is not None
    assert entries[0] is None
    assert [entry.token_id for entry in entries[1:] if entry] == prompt[1:]
    for position, entry in enumerate(entries[1:]):
        assert entry is not None
        assert entry.top_ids == tuple(driver.executor.continuation(prompt[: position + 1], 1))
    assert driver.tokens(name) == driver.executor.continuation(prompt, max_tokens)
    assert driver.end(name).finish_reason == "length"
