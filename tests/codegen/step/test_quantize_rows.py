"""Activations become the integers, scales and biases that NumPy says, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.functions import ir_module
from codegen.gemm.register_tile import Activations
from codegen.kit import Kit, T
from codegen.layout.operands import Int8Rows
from codegen.layout.panels import PanelLayout
from codegen.reference import quantize_activations
from codegen.spec import WeightFormat
from codegen.step.quantize_rows import quantize_row
from platforms.isa import isa_row
from platforms.memory import Arena
from tests.codegen.conftest import BEST, ISAS, Array, normal

NUM_ROWS = 5


def quantized(isa: str, form: Int8Rows, x: Array) -> dict[str, Array]:
    """The arrays of `form` that the kernel writes for x (NUM_ROWS, k)."""
    row, lanes = isa_row(isa), isa_row(isa).lanes
    columns = -(-x.shape[1] // lanes) * lanes
    specs = form.specs("a", NUM_ROWS)
    arena = Arena(1 << 20, "rows")
    source = arena.array((NUM_ROWS, columns), np.dtype(np.float32))
    source[:, : x.shape[1]] = x
    arrays = {name: arena.array(s.shape, s.dtype) for name, s in specs.items()}
    for array in arrays.values():
        array.view(np.int32)[:] = -1

    def build() -> None:
        kit = Kit(row, "float32")
        names = ["x", *specs]
        handles = {name: T.arg(name, T.handle()) for name in names}
        b = {"x": T.match_buffer(handles["x"], list(source.shape), "float32")}
        for name, s in specs.items():
            b[name] = T.match_buffer(handles[name], list(s.shape), str(s.dtype))
        out = Activations(*(b.get(part) for part in ("a", "a_scales", "a_bias", "a_sums")))
        with kit.imports(), T.serial(0, NUM_ROWS) as i:
            quantize_row(kit, form, out, i, lambda column: kit.load(b["x"], i, column))

    function = load(object_code(lower(ir_module("rows", build), row)), "rows")
    function(tensor(source), *map(tensor, arrays.values()))
    return arrays


FORMATS = {
    "per-row": WeightFormat("int8", "int8"),
    "zero-points": WeightFormat("int8", "int8", has_zero_points=True),
    "groups": WeightFormat("int4", "int8", 32),
    "groups-of-zero-points": WeightFormat("int4", "int8", 64, has_zero_points=True),
    "minima": WeightFormat("int4", "int8", 32, has_minima=True),
}


@pytest.mark.parametrize("k", [1, 37, 128, 200])
@pytest.mark.parametrize("weights", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_rows_are_rounded_as_numpy_rounds_them(isa: str, weights: WeightFormat, k: int) -> None:
    layout = PanelLayout(16, k, weights, 2 * isa_row(isa).lanes, isa_row(isa).lanes)
    form = Int8Rows(isa_row(isa), layout)
    x = normal(NUM_ROWS, k) * np.float32(10.0) ** np.arange(-3, 2, dtype=np.float32)[:, None]
    x[1] = 0.0
    x[2, 0] = 127.5  # would be rounded to 128 if it had the scale of 127
    arrays = quantized(isa, form, x)
    integers, scales = quantize_activations(x, weights.group)
    for name, expected in form.stored("a", integers, scales).items():
        np.testing.assert_array_equal(arrays[name], expected)
    assert np.abs(integers).max() <= 127


def test_values_of_any_magnitude_have_a_scale() -> None:
    form = Int8Rows(isa_row(BEST), PanelLayout(16, 96, FORMATS["groups"], 32, isa_row(BEST).lanes))
    x = np.float32(2.0) ** np.array([-149, -126, -101, 100, 127], np.float32)[:, None]
    arrays = quantized(BEST, form, x * np.ones(96, np.float32))
    integers, scales = quantize_activations(x * np.ones(96, np.float32), 32)
    for name, expected in form.stored("a", integers, scales).items():
        np.testing.assert_array_equal(arrays[name], expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weights", [FORMATS["per-row"], FORMATS["groups"]], ids=["row", "groups"])
@pytest.mark.parametrize("isa", ISAS)
def test_what_is_no_number_makes_a_scale_that_is_none(
    isa: str, weights: WeightFormat, value: float
) -> None:
    lanes = isa_row(isa).lanes
    form = Int8Rows(isa_row(isa), PanelLayout(16, 96, weights, 2 * lanes, lanes))
    x = normal(NUM_ROWS, 96)
    x[1, 40] = value  # in the second of three groups
    scales = quantized(isa, form, x)["a_scales"]
    is_number = np.isfinite(scales)
    if weights.group:
        assert is_number[1].tolist() == [True, False, True]
    else:
        assert is_number[1].tolist() == [False]
    assert is_number[np.arange(NUM_ROWS) != 1].all()
