"""A request: what it makes of its prompt and parameters, and when it says it is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sandwich.errors import InvalidRequestError
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams


def test_tokens_of_any_number_follow_the_prompt() -> None:
    request = Request("a", [1, 2], SamplingParams())
    for token_id in range(100):
        request.accept(token_id, now=0.0)
    assert request.output_token_ids.tolist() == list(range(100))
    assert request.token_ids[:3].tolist() == [1, 2, 0]
    assert request.num_tokens == 102
    assert request.num_output_tokens == 100


def test_the_caller_s_array_is_not_shared() -> None:
    prompt = np.array([1, 2, 3], np.int32)
    request = Request("a", prompt, SamplingParams())
    prompt[:] = 9
    assert request.token_ids[: request.num_tokens].tolist() == [1, 2, 3]


@pytest.mark.parametrize("prompt", [[2**31], [[1, 2], [3]], ["a"], [None], [-(2**40)]])
def test_a_prompt_that_is_no_list_of_ids_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="token ids") as caught:
        Request("a", prompt, SamplingParams())
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (7, 7), (-1, 2**64 - 1), (2**64 - 1,) * 2])
def test_a_seed_becomes_64_bits(seed: int, expected: int) -> None:
    assert Request("a", [1], SamplingParams(seed=seed)).seed == expected


def test_without_a_seed_every_request_has_its_own() -> None:
    seeds = {Request("a", [1], SamplingParams()).seed for _ in range(20)}
    assert len(seeds) == 20


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, {5, 6}),
        ({"ignore_eos": True}, set()),
        ({"stop_token_ids": [7]}, {5, 6, 7}),
        ({"stop_token_ids": [5], "ignore_eos": True}, {5}),
    ],
)
def test_the_ids_that_end_a_request(params: dict[str, Any], expected: set[int]) -> None:
    assert Request("a", [1], SamplingParams(**params), eos_token_ids=[5, 6]).stop_ids == expected


def test_a_token_ends_a_request_by_its_id_or_by_its_number() -> None:
    request = Request("a", [1], SamplingParams(stop_token_ids=[7]), eos_token_ids=[5])
    request.max_tokens = 3
    assert request.accept(1, now=1.0) is None
    assert request.accept(2, now=2.0) is None
    assert request.accept(3, now=3.0) == "length"
    for token_id in (5, 7):
        request.max_tokens += 1
        assert request.accept(token_id, now=4.0) == "stop"
    assert request.first_token_time == 1.0
    assert request.last_token_time == 4.0


@pytest.mark.parametrize(
    ("last", "reason", "expected"),
    [(7, "stop", 7), (5, "stop", None), (7, "length", None), (7, None, None)],
)
def test_the_stop_reason_is_the_id_the_client_named(
    last: int, reason: str | None, expected: int | None
) -> None:
    request = Request("a", [1], SamplingParams(stop_token_ids=[7]), eos_token_ids=[5])
    request.accept(last, now=0.0)
    request.finish_reason = reason
    assert request.stop_reason() == expected
