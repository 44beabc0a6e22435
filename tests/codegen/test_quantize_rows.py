"""Activations become the integers, scales and biases that NumPy says, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.kit import Kit, T, prim_func
from codegen.operands import Int8Rows
from codegen.panels import PanelLayout
from codegen.quantize_rows import quantize_row
from codegen.reference import quantize_activations
from codegen.register_tile import Activations
from codegen.spec import WeightFormat
from platforms.isa import isa_row
from platforms.memory import Arena
from tests.codegen.conftest import ISAS, Array, normal

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
        out = Activations(b["a"], b["a_scales"], b["a_bias"])
        with kit.imports(), T.serial(0, NUM_ROWS) as i:
            quantize_row(kit, form, out, i, lambda column: kit.load(b["x"], i, column))

    function = load(object_code(lower(prim_func("rows", build), row)), "rows")
    function(tensor(source), *map(tensor, arrays.values()))
    return arrays


FORMATS = {
    "per-row": (WeightFormat("int8", "int8"), False),
    "zero-points": (WeightFormat("int8", "int8", has_zero_points=True), False),
    "groups-of-weights": (WeightFormat("int4", "int8", 32), False),
    "scales-per-group": (WeightFormat("int4", "int8", 64), True),
}


@pytest.mark.parametrize("k", [1, 37, 128, 200])
@pytest.mark.parametrize(("weights", "has_group_scales"), FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_rows_are_rounded_as_numpy_rounds_them(
    isa: str, weights: WeightFormat, has_group_scales: bool, k: int
) -> None:
    layout = PanelLayout(16, k, weights, 2 * isa_row(isa).lanes, isa_row(isa).lanes)
    form = Int8Rows(isa_row(isa), layout, has_group_scales)
    x = normal(NUM_ROWS, k) * np.float32(10.0) ** np.arange(-3, 2, dtype=np.float32)[:, None]
    x[1] = 0.0
    arrays = quantized(isa, form, x)
    integers, scales = quantize_activations(x, weights.group if has_group_scales else 0)
    stored = arrays["a"].view(np.int8)
    np.testing.assert_array_equal(stored[:, :k], integers)
    assert not stored[:, k:].any()
    np.testing.assert_array_equal(arrays["a_scales"], scales)
    sums = stored.reshape(NUM_ROWS, layout.num_groups, -1).sum(axis=2, dtype=np.int32)
    np.testing.assert_array_equal(arrays["a_bias"], -form.bias_factor * sums)
    assert np.abs(integers).max() == 127
