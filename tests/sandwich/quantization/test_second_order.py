"""Second-order rounding: products with the inputs it is given change less than by nearest codes."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.layout.arrays import Floats
from codegen.layout.quantize import QuantizedRows, quantize
from codegen.spec import WeightFormat
from sandwich.quantization.second_order import Moments, round_for_inputs
from tests.codegen.conftest import normal

N, K = 24, 72  # two whole groups of 32 and a short one
FORMATS = [
    WeightFormat("int4", "int8", 32, "float16", has_minima=True),
    WeightFormat("int4", "int8", 64, "float16"),
    WeightFormat("int8", "int8", 32, "float16"),
]
each_format = pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)


def moments_of(x: Floats) -> Moments:
    return (x.T @ x).astype(np.float64)


def inputs_that_go_together() -> Floats:
    return normal(300, 12, seed=1) @ normal(12, K, seed=2) + np.float32(0.3) * normal(
        300, K, seed=3
    )


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
