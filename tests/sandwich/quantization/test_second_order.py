"""Second-order rounding: products with the inputs it is given change less than by nearest codes."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.layout.arrays import Floats
from codegen.layout.quantize import QuantizedRows, quantize
from codegen.spec import WeightFormat
from sandwich.quantization.second_order import moments_of, round_for_inputs
from tests.codegen.conftest import normal

N, K = 24, 72  # two whole groups of 32 and a short one
FORMATS = [
    WeightFormat("int4", "int8", 32, "float16", has_minima=True),
    WeightFormat("int4", "int8", 64, "float16"),
    WeightFormat("int8", "int8", 32, "float16"),
]
each_format = pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)


def inputs_that_go_together(num_tokens: int = 300, seed: int = 1) -> Floats:
    together = normal(num_tokens, 12, seed=seed) @ normal(12, K, seed=100)
    return together + np.float32(0.3) * normal(num_tokens, K, seed=seed + 1)


def loss(x: Floats, weight: Floats, rows: QuantizedRows, weights: WeightFormat) -> float:
    """The share of the products' squares that rounding changes."""
    exact = x @ weight.T
    return float(np.square(x @ rows.dequantized(weights).T - exact).sum() / np.square(exact).sum())


@each_format
def test_products_with_the_inputs_change_less(weights: WeightFormat) -> None:
    x, weight = inputs_that_go_together(), normal(N, K)
    rounded = round_for_inputs(weight, moments_of(x), weights)
    nearest = quantize(weight, weights)
    assert loss(x, weight, rounded, weights) < 0.35 * loss(x, weight, nearest, weights)
    assert rounded.codes.shape == nearest.codes.shape
    assert rounded.scales.shape == nearest.scales.shape
    lowest, largest = weights.code_range
    assert lowest <= rounded.codes.min()
    assert rounded.codes.max() <= largest


@each_format
def test_few_tokens_do_not_harm_products_with_others(weights: WeightFormat) -> None:
    """As many as there are inputs say nothing true of which of them go together."""
    weight, seen, other = normal(N, K), normal(K, K, seed=1), normal(300, K, seed=2)
    rounded = round_for_inputs(weight, moments_of(seen), weights)
    nearest = quantize(weight, weights)
    assert loss(other, weight, rounded, weights) < 1.3 * loss(other, weight, nearest, weights)


def test_a_large_input_gets_the_finest_steps() -> None:
    weights, weight, x = FORMATS[0], normal(N, K), normal(300, K, seed=1)
    x[:, 5] *= 20
    rounded = round_for_inputs(weight, moments_of(x), weights)
    errors = np.square(rounded.dequantized(weights) - weight)
    assert errors[:, 5].mean() < 0.2 * errors.mean()
    assert loss(x, weight, rounded, weights) < 0.3 * loss(
        x, weight, quantize(weight, weights), weights
    )


def test_neither_a_huge_token_nor_the_others_are_forgotten() -> None:
    weights, weight, x = FORMATS[0], normal(N, K), inputs_that_go_together()
    x[0] = normal(1, K, seed=9) * 1000
    rounded = round_for_inputs(weight, moments_of(x), weights)
    nearest = quantize(weight, weights)
    for tokens in (x[:1], x[1:]):
        mine, theirs = (loss(tokens, weight, each, weights) for each in (rounded, nearest))
        assert mine < 0.7 * theirs


@each_format
def test_inputs_that_have_nothing_in_common_get_the_nearest_codes(weights: WeightFormat) -> None:
    weight = normal(N, K)
    rounded = round_for_inputs(weight, np.eye(K), weights)
    nearest = quantize(weight, weights)
    np.testing.assert_array_equal(rounded.scales, nearest.scales)
    steps = np.abs(rounded.codes.astype(int) - nearest.codes.astype(int))
    assert steps.max() <= 1  # the middle between two codes
    assert np.mean(steps > 0) < 0.01


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    weights, weight = FORMATS[0], normal(N, K)
    x = inputs_that_go_together()
    x[:, 10:40] = 0.0
    for moments in (moments_of(x), np.zeros((K, K))):
        values = round_for_inputs(weight, moments, weights).dequantized(weights)
        assert np.abs(values - weight).max() < 2.0
