"""AMX without a CPU that has it: its machine code is looked at, its loops run on emulated tiles."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codegen import intrinsics
from codegen.compile import lower
from codegen.gemm.amx_tile import has_tiles
from codegen.gemm.program import GemmProgram, GemmSpec, gemm_module
from codegen.intrinsics import amx
from codegen.layout.arrays import bf16_from_float32, float32_from_bf16
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.layout.quantize import quantize
from codegen.reference import integer_gemm, quantize_activations
from codegen.spec import GemmTile, ProgramSpec, WeightFormat
from platforms.isa import isa_row
from platforms.memory import Arena, arena_nbytes
from tests.codegen import amx_emulation
from tests.codegen.conftest import INFO, Array, Compile, make_spec, normal, same_bits
from tests.codegen.gemm import test_nest

AMX = isa_row("amx")
BF16, INT8 = WeightFormat("bfloat16"), WeightFormat("int8", "int8")
PANEL = 64
TILES = ((1 << 16, GemmTile(mr=6, kc=64)),)


NUM_ROWS = [0, 1, 15, 16, 17, 31, 32, 33, 49, 70]
MOST_ROWS = NUM_ROWS[-1]


def assembly(weights: WeightFormat) -> str:
    layout = PanelLayout(2 * PANEL, 128, weights, PANEL, AMX.lanes)
    func = gemm_module(GemmSpec("amx", layout, 1, 1, 64, TILES))
    return str(lower(func, AMX).inspect_source("asm"))


@pytest.mark.parametrize(("weights", "dot"), [(BF16, "tdpbf16ps"), (INT8, "tdpbsud")])
def test_a_block_is_four_products_of_two_and_two_tiles(weights: WeightFormat, dot: str) -> None:
    text = assembly(weights)
    first, last = text.index("ldtilecfg"), text.rindex("tilerelease")
    tiles = re.findall(r"\s(tile\w+d|tdp\w+)\s(?:.*\), )?((?:%tmm\d(?:, )?)+)", text[first:last])
    loads = [("tileloadd", f"%tmm{tile}") for tile in (4, 5, 6, 7)]
    products = [
        *((dot, "%tmm6, %tmm4, %tmm0"), (dot, "%tmm7, %tmm4, %tmm1")),
        *((dot, "%tmm6, %tmm5, %tmm2"), (dot, "%tmm7, %tmm5, %tmm3")),
    ]
    assert [*loads, *products] in [tiles[i : i + 8] for i in range(len(tiles))]
    assert len(re.findall(r"tilestored\s+%tmm[0-3], ", text)) >= len(products)


@pytest.fixture
def emulated_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    if not isa_row("avx512_bf16").required_flags <= INFO.flags:
        pytest.skip("the CPU has no AVX-512 BF16")
    monkeypatch.setitem(intrinsics.SPELLINGS, "amx", amx_emulation.SPELLINGS)


def pairs(values: Array) -> Array:
    """(rows, 2 n) floats as (rows, n) words of two bf16."""
    return bf16_from_float32(values).view(np.int32)


class Product:
    """A compiled product of random operands on emulated tiles, and its truth in NumPy."""

    def __init__(self, weights: WeightFormat, n: int, k: int, kc: int) -> None:
        layout = PanelLayout(n, k, weights, PANEL, AMX.lanes)
        tiles = ((1 << 16, GemmTile(mr=6, kc=kc, prefetch_bytes=512)),)
        spec = GemmSpec("amx", layout, 1, 1, MOST_ROWS, tiles)
        specs = spec.arguments()
        arena = Arena(arena_nbytes([item.nbytes for item in specs.values()]), "gemm")
        arrays = {name: arena.array(item.shape, item.dtype) for name, item in specs.items()}
        self.out, x, w = arrays["out"], normal(MOST_ROWS, k, seed=2), normal(n, k, seed=1)
        if weights.is_quantized:
            codes = quantize(w, weights)
            layout.pack_rows(codes, 0, PackedMatrix(arrays["w"][0], arrays["w_scales"][0]))
            self.expected = integer_gemm(*quantize_activations(x), codes, weights)
            self.bound = np.zeros_like(self.expected)
        else:
            layout.pack_rows(bf16_from_float32(w), 0, PackedMatrix(arrays["w"][0]))
            exact_x, exact_w = (float32_from_bf16(bf16_from_float32(v)) for v in (x, w))
            self.expected = exact_x @ exact_w.T
            self.bound = 1e-6 * k**0.5 * (np.abs(exact_x) @ np.abs(exact_w.T))
        self.program = GemmProgram(spec, arrays)
        self.program.write_a(x)

    def run(self, num_rows: int) -> Array:
        self.out[:] = np.nan
        self.program.run(num_rows, 0)
        assert np.isnan(self.out[num_rows:]).all()
        return self.out[:num_rows].copy()


# One value; K less than a step; K that leaves words over, in one block and in several; whole tiles.
SIZES = [(1, 1, 0), (PANEL - 3, 37, 0), (PANEL + 5, 200, 0), (PANEL + 21, 300, 128), (128, 256, 64)]


@pytest.mark.usefixtures("emulated_tiles")
@pytest.mark.parametrize(("n", "k", "kc"), SIZES)
@pytest.mark.parametrize("weights", [BF16, INT8], ids=["bf16", "int8"])
def test_any_number_of_rows_by_any_matrix(weights: WeightFormat, n: int, k: int, kc: int) -> None:
    product = Product(weights, n, k, kc)
    whole = product.run(MOST_ROWS)
    assert (np.abs(whole[:, :n] - product.expected) <= product.bound).all()
    assert not whole[:, n:].any()
    for num_rows in NUM_ROWS:
        assert same_bits(product.run(num_rows), whole[:num_rows]), num_rows


@pytest.mark.usefixtures("emulated_tiles")
@pytest.mark.parametrize(
    "test",
    [
        test_nest.test_qkv_is_stored_with_its_bias,
        test_nest.test_down_is_added_to_the_residual_stream,
        test_nest.test_gate_and_up_leave_as_their_silu_product,
    ],
    ids=lambda test: test.__name__[5:],
)
def test_epilogues_are_those_of_vectors(
    monkeypatch: pytest.MonkeyPatch,
    compile_body: Compile,
    test: Callable[[Compile, str, str, bool], None],
) -> None:
    def make_spec_of_one_core(*args: Any, **options: Any) -> ProgramSpec:
        return make_spec(*args, **(options | {"num_cores": 1}))

    monkeypatch.setattr(test_nest, "make_spec", make_spec_of_one_core)
    monkeypatch.setattr(test_nest, "BLOCK", 2 * amx.TILE_WORDS)
    test(compile_body, "amx", "bfloat16", True)


def test_the_meanings_of_tiles_are_those_of_matrices() -> None:
    rng = np.random.default_rng(0)
    c = rng.integers(-1000, 1000, (5, 16)).astype(np.int32)
    x, y = rng.integers(-128, 128, (5, 64)).astype(np.int8), rng.integers(0, 256, (16, 16, 4))
    words = y.astype(np.uint8).view(np.int32)[:, :, 0]
    product = x.astype(np.int32) @ y.transpose(0, 2, 1).reshape(64, 16)
    np.testing.assert_array_equal(amx.tile_dot_u8(c, x.view(np.int32), words), c + product)
    a, b = (pairs(normal(rows, 2 * 16, seed=rows)) for rows in (5, 16))
    wide_a, wide_b = (float32_from_bf16(words.view(np.uint16)) for words in (a, b))
    sums = wide_a @ wide_b.reshape(16, 16, 2).transpose(0, 2, 1).reshape(32, 16)
    zeros = np.zeros((5, 16), np.float32)
    np.testing.assert_allclose(amx.tile_dot_bf16(zeros, a, b), sums, rtol=1e-5, atol=1e-5)
    memory = np.arange(200, dtype=np.int32)
    tile = amx.tile_load(memory, 4 * 40, 3)
    assert tile[:, 0].tolist() == [0, 40, 80]
    amx.tile_store(tile + 1, memory, 4 * 40)
    assert memory[[0, 15, 16, 40]].tolist() == [1, 16, 16, 41]


@pytest.mark.parametrize(
    ("weights", "is_tiled"),
    [
        (BF16, True),
        (INT8, True),
        (WeightFormat("float32"), False),
        (WeightFormat("int8", "int8", 64), False),
        (WeightFormat("int4", "int8"), False),
    ],
)
def test_only_pairs_and_bytes_without_groups_go_to_tiles(
    weights: WeightFormat, is_tiled: bool
) -> None:
    assert has_tiles(AMX, weights) == is_tiled
    assert not has_tiles(isa_row("avx512_bf16"), weights)
