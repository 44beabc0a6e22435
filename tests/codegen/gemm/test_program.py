"""The GEMM program computes what NumPy computes, for every M, copy, tile and edge."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from codegen.compile import pin_pool
from codegen.gemm.nest import block_rows
from codegen.gemm.program import GemmProgram, GemmSpec
from codegen.layout.arrays import bf16_from_float32
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.reference import gemm
from codegen.spec import GemmTile, WeightFormat
from platforms.isa import isa_row, select_isa
from platforms.memory import Arena, arena_nbytes

ISAS = ["generic", select_isa(forced="auto").name]
# The remainders of the second range are 0 and 1 alone.
TILES = (
    (3, GemmTile(mr=2, k_unroll=4)),
    (5, GemmTile(mr=4, kc=16, k_unroll=2, nv=1)),
    (7, GemmTile(mr=3, kc=16, block_prefetch=2)),
)
MAX_ROWS = 9  # beyond the last range


def make(spec: GemmSpec, weights: np.ndarray) -> tuple[GemmProgram, np.ndarray]:
    """The program with weights (copies, n, k) float32 packed, and its output."""
    arguments = spec.arguments()
    arena = Arena(arena_nbytes([s.nbytes for s in arguments.values()]), "gemm")
    buffers = {name: arena.array(s.shape, s.dtype) for name, s in arguments.items()}
    rows = bf16_from_float32(weights) if spec.layout.kr == 2 else weights
    for copy, matrix in enumerate(rows):
        spec.layout.pack_rows(matrix, 0, PackedMatrix(buffers["w"][copy]))
    buffers["out"][:] = np.nan
    return GemmProgram(spec, buffers), buffers["out"]


def spec_of(isa: str, dtype: str, n: int, k: int, num_cores: int = 1) -> GemmSpec:
    lanes = isa_row(isa).lanes
    layout = PanelLayout(n, k, WeightFormat(dtype), 2 * lanes, lanes)
    return GemmSpec(isa, layout, 2, num_cores, MAX_ROWS, TILES)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("panels", "extra", "k"), [(2, 0, 32), (1, 3, 18), (3, -1, 34)])
def test_every_m_and_copy_equals_numpy(
    isa: str, dtype: str, panels: int, extra: int, k: int
) -> None:
    spec = spec_of(isa, dtype, panels * 2 * isa_row(isa).lanes + extra, k)
    n = spec.layout.n
    rng = np.random.default_rng(0)
    x = rng.standard_normal((spec.max_rows, k), np.float32)
    weights = rng.standard_normal((2, n, k), np.float32)
    program, out = make(spec, weights)
    # A is rounded to bf16 only where the ISA multiplies bf16
    x = gemm(np.eye(k, dtype=np.float32), x, dtype).T if spec.kit.has_dot else x
    program.write_a(x)
    exact = (
        weights
        if dtype == "float32"
        else np.stack([gemm(np.eye(k, dtype=np.float32), w, dtype).T for w in weights])
    )
    for m, copy in product(range(1, spec.max_rows + 1), range(2)):
        out[:] = np.nan
        program.run(m, copy)
        np.testing.assert_allclose(out[:m, :n], x[:m] @ exact[copy].T, rtol=1e-4, atol=1e-4)
        assert np.isnan(out[m:]).all()


@pytest.mark.parametrize("m", [3, 4, 9])
def test_a_program_for_one_m_gives_the_same_bits(m: int) -> None:
    isa = select_isa(forced="auto").name
    spec = replace(spec_of(isa, "float32", 50, 40), max_rows=m)
    rng = np.random.default_rng(2)
    x, weights = rng.standard_normal((m, 40), np.float32), rng.standard_normal((2, 50, 40))
    results = []
    for variant in (spec, replace(spec, tiles=TILES[1:], has_fixed_rows=True)):
        program, out = make(variant, weights.astype(np.float32))
        program.write_a(x)
        program.run(m, 1)
        results.append(out.copy())
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("num_cores", [2, 4])
def test_parts_of_the_rows_on_different_cores_give_the_same_bits(num_cores: int) -> None:
    isa = select_isa(forced="auto").name
    rng = np.random.default_rng(3)
    x, weights = rng.standard_normal((9, 40), np.float32), rng.standard_normal((2, 50, 40))
    tile = GemmTile(mr=2, kc=16, k_unroll=2)
    pin_pool([0] * num_cores, is_pinned=False)
    programs = []
    for parts in (1, 2):
        tiles = ((MAX_ROWS, replace(tile, row_parts=parts)),)
        spec = replace(spec_of(isa, "float32", 50, 40, num_cores), tiles=tiles)
        programs.append(make(spec, weights.astype(np.float32)))
        programs[-1][0].write_a(x)
    for m in (1, 2, 5, 8, 9):
        for program, _ in programs:
            program.run(m, 1)
        np.testing.assert_array_equal(programs[0][1], programs[1][1])


@pytest.mark.parametrize(
    ("isa", "kc"),
    [(ISAS[1], 16), *(pytest.param(isa, 0, marks=pytest.mark.slow) for isa in ISAS)],
)
def test_every_order_of_the_tiles_gives_the_same_bits(isa: str, kc: int) -> None:
    """Five panels, the last of one vector, and up to three blocks of rows for each part of M."""
    lanes, k = isa_row(isa).lanes, 40
    layout = PanelLayout(9 * lanes - 3, k, WeightFormat("float32"), 2 * lanes, lanes)
    height = block_rows(layout, 2)
    max_rows = 4 * height + 2
    x = np.random.default_rng(4).standard_normal((max_rows, k), np.float32)
    weights = np.random.default_rng(5).standard_normal((1, layout.n, k), np.float32)
    results: dict[int, np.ndarray] = {}
    pin_pool([0, 0], is_pinned=False)
    for order, parts in (("panels", 1), ("rows", 1), ("curve", 1), ("curve", 2)):
        tile = GemmTile(mr=2, kc=kc, order=order, row_parts=parts)
        program, out = make(GemmSpec(isa, layout, 1, 2, max_rows, ((1, tile),)), weights)
        program.write_a(x)
        for m in (0, 1, height, height + 1, max_rows):
            out[:] = np.nan
            program.run(m, 0)
            assert np.isnan(out[m:]).all()
            expected = results.setdefault(m, out.copy())
            np.testing.assert_array_equal(out, expected, err_msg=f"{order} {parts} {m}")
    np.testing.assert_allclose(
        results[max_rows][:, : layout.n], x @ weights[0].T, rtol=1e-4, atol=1e-4
    )


def test_two_cores_share_the_panels() -> None:
    isa = select_isa(forced="auto").name
    n, k = 5 * 2 * isa_row(isa).lanes, 24
    spec = spec_of(isa, "float32", n, k, num_cores=2)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((7, k), np.float32)
    weights = rng.standard_normal((2, n, k), np.float32)
    program, out = make(spec, weights)
    pin_pool([0, 1], is_pinned=False)
    program.write_a(x)
    program.run(7, 1)
    np.testing.assert_allclose(out[:7], x @ weights[1].T, rtol=1e-4, atol=1e-4)


def test_no_rows_are_no_work() -> None:
    spec = spec_of("generic", "float32", 8, 4)
    program, out = make(spec, np.ones((2, 8, 4), np.float32))
    program.run(0, 0)
    assert np.isnan(out).all()


def test_scratch_is_needed_only_where_k_is_cut() -> None:
    assert spec_of("generic", "float32", 8, 16).arguments()["partial"].shape == (9, 1)
    assert spec_of("generic", "float32", 8, 17).arguments()["partial"].shape == (9, 8)


@pytest.mark.parametrize("bounds", [(), (3, 3), (5, 2)])
def test_tiles_must_ascend(bounds: tuple[int, ...]) -> None:
    layout = PanelLayout(8, 4, WeightFormat("float32"), 8, 4)
    with pytest.raises(ValueError, match="must be one or more and ascend"):
        GemmSpec("generic", layout, 1, 1, 5, tuple((rows, GemmTile(1)) for rows in bounds))
