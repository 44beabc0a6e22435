"""Sampling parameters: what is accepted, what is refused and by which name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sandwich.errors import InvalidRequestError
from sandwich.requests.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("max_tokens", -1),
        ("max_tokens", 2.0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_p", None),
        ("top_k", -2),
        ("top_k", 1.0),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("seed", 2**64),
        ("seed", 0.5),
        ("stop", [""]),
        ("stop", ["a", 1]),
        ("stop", 5),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", 5),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("logprobs", -1),
        ("logprobs", 21),
        ("prompt_logprobs", 21),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {"1": 0.0}),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {2**31: 1.0}),
        ("logit_bias", 3),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{param} is ") as caught:
        SamplingParams(**{param: value})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("max_tokens", None),
        ("max_tokens", 0),
        ("temperature", 0),
        ("temperature", 100),
        ("top_p", 1e-9),
        ("top_p", 1),
        ("min_p", 1.0),
        ("presence_penalty", -2),
        ("seed", np.int64(3)),
        ("seed", -(2**63)),
        ("seed", 2**64 - 1),
        ("logprobs", 20),
        ("min_tokens", 16),
        ("logit_bias", {0: -100, 5: 100.0}),
        ("logit_bias", {}),
        ("stop_token_ids", []),
    ],
)
def test_the_ends_of_a_range_are_in_it(param: str, value: Any) -> None:
    SamplingParams(**{param: value})


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, ()), ("", ()), ("a", ("a",)), (["a", "bc"], ("a", "bc"))]
)
def test_stop_strings_become_a_tuple(stop: Any, expected: tuple[str, ...]) -> None:
    assert SamplingParams(stop=stop).stop == expected


@pytest.mark.parametrize(("top_k", "expected"), [(-1, 0), (0, 0), (1, 1), (10**9, 10**9)])
def test_minus_one_and_zero_both_switch_top_k_off(top_k: int, expected: int) -> None:
    assert SamplingParams(top_k=top_k).top_k == expected


def test_more_min_tokens_than_max_tokens_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidRequestError, match="min_tokens is 5 but max_tokens is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)
    SamplingParams(min_tokens=5, max_tokens=None)


@pytest.mark.parametrize(
    ("params", "edits"),
    [
        ({}, False),
        ({"temperature": 0.0, "logprobs": 3, "top_k": 2, "seed": 1}, False),
        ({"min_tokens": 1}, True),
        ({"logit_bias": {1: 1.0}}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"presence_penalty": -1}, True),
        ({"frequency_penalty": 1}, True),
    ],
)
def test_only_these_parameters_edit_logits(params: dict[str, Any], edits: bool) -> None:
    assert SamplingParams(**params).edits_logits == edits


@pytest.mark.parametrize(("temperature", "is_greedy"), [(0, True), (1e-6, True), (1e-5, False)])
def test_a_vanishing_temperature_is_greedy(temperature: float, is_greedy: bool) -> None:
    assert SamplingParams(temperature=temperature).is_greedy == is_greedy
