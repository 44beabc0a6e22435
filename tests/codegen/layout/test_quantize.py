"""Quantised weights: codes are the nearest, scales are what their type holds, panels give them
back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from codegen.layout.arrays import from_storage, to_storage
from codegen.layout.matrices import matrix_specs
from codegen.layout.model import ModelLayout
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.layout.quantize import QuantizedRows, quantize
from codegen.spec import GROUP_SIZES, WeightFormat
from tests.codegen.conftest import Array, normal

N, K = 41, 200  # neither whole panels nor whole groups
SCALE_DTYPES = ("float32", "float16", "bfloat16", "float32")  # by group size
FORMATS = [
    WeightFormat(dtype, activations, group, scale_dtype, has_zero_points)
    for dtype, activations in product(("int8", "int4"), ("float", "int8"))
    for group, scale_dtype in zip((0, *GROUP_SIZES), SCALE_DTYPES, strict=True)
    for has_zero_points in (False, True)
] + [
    WeightFormat(dtype, "int8", group, scale_dtype, has_minima=True)
    for dtype, group, scale_dtype in (("int4", 32, "float16"), ("int8", 64, "float32"))
]
each_format = pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)


def packed_zeros(layout: PanelLayout) -> PackedMatrix:
    specs = matrix_specs("w", layout, ())
    return ModelLayout.matrix({name: np.zeros(s.shape, s.dtype) for name, s in specs.items()}, "w")


def layout_of(weights: WeightFormat) -> PanelLayout:
    return PanelLayout(N, K, weights, panel=16, lanes=4)


def grid_of_values(rows: QuantizedRows, weights: WeightFormat) -> tuple[Array, Array, Array]:
    """The scale of every value, and the least and the greatest that its group has codes for."""
    base = -rows.scales * weights.zero_code
    if rows.zero_points is not None:
        base = -rows.scales * rows.zero_points
    if rows.minima is not None:
        base = rows.minima
    is_symmetric = rows.zero_points is None and rows.minima is None
    first = base + rows.scales * (1 if weights.dtype == "int8" and is_symmetric else 0)
    last = base + rows.scales * (2**weights.bits - 1)
    parts = np.abs(rows.scales), np.minimum(first, last), np.maximum(first, last)
    scales, low, high = (np.repeat(part, weights.group or K, axis=1)[:, :K] for part in parts)
    return scales, low, high


@each_format
def test_every_value_becomes_its_nearest_code(weights: WeightFormat) -> None:
    x = normal(N, K) + np.float32(0.3)
    rows = quantize(x, weights)
    scales, low, high = grid_of_values(rows, weights)
    reached = np.clip(x, low, high)
    assert (np.abs(rows.dequantized(weights) - reached) <= 0.501 * scales + 1e-6).all()
    # a zero point of a whole code moves the range by half a step; half of an int4 range is cut
    cut = np.abs(reached - x) / scales
    assert cut.max() < 3.0
    assert np.mean(cut > 0.51) < 0.05
    assert rows.codes.max() < 2**weights.bits


@pytest.mark.parametrize("has_minima", [False, True])
def test_groups_of_nibbles_lose_less_than_by_cutting_their_range_evenly(has_minima: bool) -> None:
    weights = WeightFormat("int4", group=32, has_minima=has_minima)
    x = normal(N, 32)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    scale, base = (high - low) / 15, low
    if not has_minima:
        extreme = np.where(-low > high, low, high)
        scale, base = extreme / -8, extreme
    plain = np.clip(np.rint((x - base) / scale), 0, 15) * scale + base
    errors = (
        np.sum((y - x) ** 2, axis=1) for y in (quantize(x, weights).dequantized(weights), plain)
    )
    mine, even = errors
    assert (mine <= even * (1 + 1e-5)).all()
    assert mine.sum() < 0.96 * even.sum()


@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_values_on_a_grid_of_nibbles_with_a_minimum_are_found_again(dtype: str) -> None:
    """What was rounded to 4 bits once loses no more than its scales' rounding, in bytes too."""
    codes = np.random.default_rng(0).integers(0, 16, (N, 64)).astype(np.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 15
    minima = np.full((N, 2), -0.75, np.float32)
    first = QuantizedRows(codes, np.full((N, 2), 0.125, np.float32), minima=minima)
    x = first.dequantized(WeightFormat("int4", group=32, has_minima=True))
    weights = WeightFormat(dtype, group=32, scale_dtype="float16", has_minima=True)
    again = quantize(x, weights)
    np.testing.assert_array_equal(again.codes, codes * (17 if dtype == "int8" else 1))
    np.testing.assert_allclose(again.dequantized(weights), x, atol=1e-3)


@each_format
def test_scales_are_values_of_their_type(weights: WeightFormat) -> None:
    scales = quantize(normal(N, K), weights).scales
    stored = to_storage(scales, weights.scale_dtype)
    np.testing.assert_array_equal(from_storage(stored, weights.scale_dtype), scales)


@each_format
def test_zeros_and_rows_of_zeros_stay_zero(weights: WeightFormat) -> None:
    x = normal(N, K)
    x[3], x[5, 7:99] = 0.0, 0.0
    values = quantize(x, weights).dequantized(weights)
    assert not values[3].any()
    if not weights.has_minima:  # whose groups cut the range they have
        assert not values[5, 7:99].any()


def test_symmetric_bytes_leave_the_lowest_code_out() -> None:
    weights = WeightFormat("int8")
    rows = quantize(np.array([[-1.0, 1.0, 0.0, 0.5]], np.float32), weights)
    assert rows.codes.tolist() == [[1, 255, 128, 192]]
    assert rows.scales == np.float32(1) / np.float32(127)


def test_the_largest_of_a_group_of_nibbles_is_exact() -> None:
    weights = WeightFormat("int4", group=32)
    rows = quantize(np.array([[0.5, -0.25, 2.0, -1.0]], np.float32), weights)
    np.testing.assert_array_equal(rows.dequantized(weights), [[0.5, -0.25, 2.0, -1.0]])
    assert rows.codes[0, 2] == 0


@each_format
def test_panels_give_back_what_was_packed(weights: WeightFormat) -> None:
    layout, rows = layout_of(weights), quantize(normal(N, K), weights)
    packed = packed_zeros(layout)
    layout.pack_rows(rows, 0, packed)
    ids = [N - 1, 0, 17, 15]
    read = layout.read_codes(packed, ids)
    np.testing.assert_array_equal(read.codes, rows.codes[ids])
    np.testing.assert_array_equal(read.scales, rows.scales[ids])
    if rows.zero_points is not None:
        np.testing.assert_array_equal(read.zero_points, rows.zero_points[ids])
    if rows.minima is not None:
        np.testing.assert_array_equal(read.minima, rows.minima[ids])
    np.testing.assert_array_equal(layout.unpack(packed), rows.dequantized(weights))
    arrays = (packed.words, packed.scales, packed.zero_points, packed.minima)
    assert layout.nbytes == sum(array.nbytes for array in arrays if array is not None)


@each_format
def test_rows_packed_in_pieces_are_the_rows_packed_at_once(weights: WeightFormat) -> None:
    layout, x = layout_of(weights), normal(N, K)
    whole, pieces = packed_zeros(layout), packed_zeros(layout)
    layout.pack_rows(x, 0, whole)
    for start in range(0, N, 7):
        layout.pack_rows(x[start : start + 7], start, pieces)
    for one, other in zip(vars(whole).values(), vars(pieces).values(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(layout.unpack(whole), quantize(x, weights).dequantized(weights))


WORDS = {  # of the codes 1, 2, 3, ... at k = 0, 1, 2, ...
    WeightFormat("int8", "int8"): 0x04030201,
    WeightFormat("int4", "int8"): 0x84736251,
    WeightFormat("int4"): 0x86427531,
}


@pytest.mark.parametrize(("weights", "word"), WORDS.items(), ids=lambda value: str(value)[:40])
def test_codes_lie_in_words_where_the_kernels_look(weights: WeightFormat, word: int) -> None:
    layout = PanelLayout(1, 8, weights, panel=4, lanes=4)
    codes = np.arange(1, 9, dtype=np.uint8)[None]
    packed = packed_zeros(layout)
    layout.pack_rows(QuantizedRows(codes, np.ones((1, 1), np.float32)), 0, packed)
    assert int(packed.words.view(np.uint32)[0]) == word


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"dtype": "int3"}, "'int3'"),
        ({"dtype": "int4", "group": 48}, "group is 48"),
        ({"dtype": "int8", "activations": "int4"}, "activations is 'int4'"),
        ({"dtype": "int8", "scale_dtype": "float64"}, "'float64'"),
        ({"dtype": "bfloat16", "group": 32}, "only int8 and int4"),
        ({"dtype": "float32", "activations": "int8"}, "only int8 and int4"),
        ({"dtype": "int4", "has_minima": True}, "minima are of groups"),
        ({"dtype": "int4", "group": 32, "has_minima": True, "has_zero_points": True}, "minima"),
    ],
)
def test_a_format_that_is_not_made_is_refused_by_name(
    fields: dict[str, object], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        WeightFormat(**fields)  # type: ignore[arg-type]
