"""GEMMs of quantised weights: every format equals the NumPy truth of the same codes and scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from codegen.compile import pin_pool
from codegen.gemm.program import GemmProgram, GemmSpec
from codegen.layout.model import ModelLayout
from codegen.layout.panels import PanelLayout
from codegen.layout.quantize import QuantizedRows, quantize
from codegen.reference import integer_gemm, quantize_activations, round_to
from codegen.spec import GemmTile, TileRanges, WeightFormat
from platforms.isa import isa_row
from platforms.memory import Arena, arena_nbytes
from tests.codegen.conftest import BEST, ISAS, Array, normal, panel_of, same_bits

MR = 2
NUM_ROWS = [0, 1, MR, MR + 1, 7]
MOST_ROWS = NUM_ROWS[-1]
COPY = 1  # of two
TILES: TileRanges = (
    (2, GemmTile(mr=MR, k_unroll=3, prefetch_bytes=256)),
    (3, GemmTile(mr=MR, kc=64, nv=2, block_prefetch=2)),
)
INTEGER_FORMATS = [
    WeightFormat("int8", "int8"),
    WeightFormat("int8", "int8", has_zero_points=True),
    WeightFormat("int8", "int8", 32, "float16"),
    WeightFormat("int4", "int8"),
    WeightFormat("int4", "int8", 32, "float16"),
    WeightFormat("int4", "int8", 64, "bfloat16", has_zero_points=True),
    WeightFormat("int8", "int8", 128, has_zero_points=True),
    WeightFormat("int4", "int8", 32, "float16", has_minima=True),
    WeightFormat("int8", "int8", 64, has_minima=True),
]


def each_format(formats: Sequence[WeightFormat]) -> pytest.MarkDecorator:
    """All of them on the best ISA, the first on the portable one; the rest is slow."""
    cases = []
    for isa in ISAS:
        for i, weights in enumerate(formats):
            marks = [] if isa == BEST or (isa == "generic" and i == 0) else [pytest.mark.slow]
            name = f"{isa}-{weights.name.replace(' ', '')}-{weights.scale_dtype}"
            cases.append(pytest.param(isa, weights, id=name, marks=marks))
    return pytest.mark.parametrize(("isa", "weights"), cases)


@dataclass(frozen=True)
class Case:
    """A compiled product of random operands."""

    spec: GemmSpec
    program: GemmProgram
    arrays: Mapping[str, Array]
    x: Array  # (MOST_ROWS, k)
    w: QuantizedRows

    def run(self, num_rows: int) -> Array:
        """The first rows, after a look that no other row was written and padding is zero."""
        out = self.arrays["out"]
        out[:] = np.nan
        self.program.run(num_rows, COPY)
        assert np.isnan(out[num_rows:]).all()
        assert not out[:num_rows, self.spec.layout.n :].any()
        return out[:num_rows, : self.spec.layout.n].copy()


def make(
    isa: str,
    weights: WeightFormat,
    n: int,
    k: int,
    tiles: TileRanges = TILES,
    *,
    x: Array | None = None,
    num_cores: int = 1,
) -> Case:
    layout = PanelLayout(n, k, weights, panel_of(isa), isa_row(isa).lanes)
    spec = GemmSpec(isa, layout, 2, num_cores, MOST_ROWS, tiles)
    arguments = spec.arguments()
    arena = Arena(arena_nbytes([s.nbytes for s in arguments.values()]), "gemm")
    arrays = {name: arena.array(s.shape, s.dtype) for name, s in arguments.items()}
    w = quantize(normal(n, k, seed=1), weights)
    packed = {name: array[COPY] for name, array in arrays.items() if name.startswith("w")}
    layout.pack_rows(w, 0, ModelLayout.matrix(packed, "w"))
    program = GemmProgram(spec, arrays)
    x = normal(MOST_ROWS, k, seed=2) if x is None else x
    program.write_a(x)
    return Case(spec, program, arrays, x, w)


def ragged(isa: str, panels: int, extra: int) -> int:
    return panels * panel_of(isa) + extra


SIZES = {
    "one-value": (0, 1, 1),
    "less-than-a-panel": (1, -3, 37),
    "more-than-a-panel": (1, 5, 200),
    "whole": (2, 0, 256),
}


def truth(case: Case) -> Array:
    weights = case.spec.layout.format
    if not weights.has_int8_activations:
        x = round_to(case.x, "bfloat16") if case.spec.kit.has_dot else case.x
        return (x.astype(np.float64) @ case.w.dequantized(weights).T).astype(np.float32)
    return integer_gemm(*quantize_activations(case.x, weights.group), case.w, weights)


def agrees(case: Case, actual: Array, expected: Array) -> None:
    """Exactly where one scale ends a sum of integers; else but for the rounding of the sums."""
    weights = case.spec.layout.format
    if weights.has_int8_activations and not weights.group:
        np.testing.assert_array_equal(actual, expected)
        return
    rows = np.abs(case.w.dequantized(case.spec.layout.format))
    bound = 1e-6 * (np.abs(case.x[: len(actual)]) @ rows.T + 1e-3)
    assert (np.abs(actual - expected) <= bound).all()


def check(isa: str, weights: WeightFormat, size: tuple[int, int, int], **options: Any) -> None:
    panels, extra, k = size
    case = make(isa, weights, ragged(isa, panels, extra), k, **options)
    whole = case.run(MOST_ROWS)
    agrees(case, whole, truth(case))
    for num_rows in NUM_ROWS:
        assert same_bits(case.run(num_rows), whole[:num_rows]), num_rows


@each_format(INTEGER_FORMATS)
def test_integer_products_equal_numpy_for_every_number_of_rows(
    isa: str, weights: WeightFormat
) -> None:
    check(isa, weights, SIZES["more-than-a-panel"])


FLOAT_FORMATS = [
    WeightFormat("int8"),
    WeightFormat("int8", has_zero_points=True),
    WeightFormat("int8", group=32, scale_dtype="bfloat16"),
    WeightFormat("int4", group=32, scale_dtype="float16"),
    WeightFormat("int4", group=64, has_zero_points=True),
    WeightFormat("int4", group=32, scale_dtype="float16", has_minima=True),
    WeightFormat("int8", group=128, has_minima=True),
]
WIDENED: TileRanges = (
    (2, GemmTile(mr=MR, k_unroll=3)),
    (3, GemmTile(mr=MR, kc=64, nv=2, is_widened=True)),
)


@each_format(FLOAT_FORMATS)
def test_widened_products_equal_numpy_for_every_number_of_rows(
    isa: str, weights: WeightFormat
) -> None:
    check(isa, weights, SIZES["more-than-a-panel"], tiles=WIDENED)


EVERY_TILE = {
    "row-by-row": GemmTile(mr=1, k_unroll=2),
    "column-tiles": GemmTile(mr=2, kc=64, nv=3, k_unroll=9, block_prefetch=2),
    "k-blocks": GemmTile(mr=2, kc=128, k_unroll=4, is_widened=True, chains=2),
}
INVARIANT = [
    WeightFormat("int8", "int8"),
    WeightFormat("int4", "int8", 32, "float16"),
    WeightFormat("int8"),
    WeightFormat("int4", group=64),
    WeightFormat("int4", "int8", 32, "float16", has_minima=True),
    WeightFormat("int4", group=32, scale_dtype="float16", has_minima=True),
]


@each_format(INVARIANT)
def test_a_row_is_the_same_to_the_last_bit_for_every_tile_and_number_of_cores(
    isa: str, weights: WeightFormat
) -> None:
    n, results = panel_of(isa) + 3, {}
    for num_cores, (name, tile) in enumerate(EVERY_TILE.items(), start=1):
        case = make(isa, weights, n, 200, ((1, tile),), num_cores=num_cores)
        if num_cores > 1:
            pin_pool([0, 1], is_pinned=False)
        results[name] = case.run(MOST_ROWS)
    first = results["row-by-row"]
    assert [name for name, other in results.items() if not same_bits(first, other)] == []


@each_format([INTEGER_FORMATS[i] for i in (0, 1, 5)])
def test_chains_of_integer_sums_change_no_bit(isa: str, weights: WeightFormat) -> None:
    """Turns of the K loop and its remainder are no multiple of the chains."""
    results = []
    for chains in (1, 3):
        tile = GemmTile(mr=MR, kc=128, k_unroll=4, nv=1, chains=chains)
        case = make(isa, weights, panel_of(isa) + 3, 203, ((1, tile),))
        results.append(case.run(MOST_ROWS))
    agrees(case, results[1], truth(case))
    assert same_bits(*results)


@pytest.mark.parametrize("weights", INVARIANT, ids=lambda weights: weights.name)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_any_size_is_right(weights: WeightFormat, size: tuple[int, int, int]) -> None:
    check(BEST, weights, size, tiles=((1, GemmTile(mr=MR, nv=3)),))
