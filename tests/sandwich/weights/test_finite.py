from __future__ import annotations

import numpy as np
import pytest

from codegen.layout.arrays import bf16_from_float32
from sandwich.weights.finite import is_finite

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.0e38, -3.0e38, np.nan, -np.nan, np.inf])
def test_one_value_decides(value: float) -> None:
    rows = np.ones((3, 5), np.float32)
    rows[2, 4] = value
    assert is_finite(rows) == np.isfinite(value)
    assert is_finite(bf16_from_float32(rows)) == np.isfinite(value)
    halves = np.clip(rows, -65504.0, 65504.0) if np.isfinite(value) else rows
    assert is_finite(halves.astype(np.float16)) == np.isfinite(value)


def test_finite_values_may_have_an_infinite_sum() -> None:
    assert is_finite(np.full((2, 2), LARGEST, np.float32))


def test_no_values_are_finite() -> None:
    assert is_finite(np.empty((0, 4), np.uint16))
    assert is_finite(np.empty((0, 4), np.float32))
