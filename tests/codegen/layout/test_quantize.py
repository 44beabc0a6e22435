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

ROUNDING = {"float32": 0.0, "float16": 2.0**-12, "bfloat16": 2.0**-9}
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


def scales_of_values(rows: QuantizedRows, weights: WeightFormat) -> Array:
    """The scale of every value, (n, k)."""
    return np.repeat(np.abs(rows.scales), weights.group or K, axis=1)[:, :K]


@each_format
def test_every_value_becomes_its_nearest_code(weights: WeightFormat) -> None:
    x = normal(N, K) + np.float32(0.3)
    rows = quantize(x, weights)
    error = np.abs(rows.dequantized(weights) - x)
    # the value opposite to a 4-bit extreme is cut by up to a step, a rounded zero point moves all
    # by half a step, and a rounded scale moves the last code most
    is_cut = weights.dtype == "int4" and not weights.has_minima
    steps = 1.01 if is_cut or weights.has_zero_points else 0.51
    steps += 2**weights.bits * ROUNDING[weights.scale_dtype]
    assert (error <= steps * scales_of_values(rows, weights) + 1e-6).all()
    assert np.median(error / scales_of_values(rows, weights)) < 0.3
    assert rows.codes.max() < 2**weights.bits


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
