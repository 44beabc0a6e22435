"""Every intrinsic of every ISA this CPU runs, compiled alone, against its meaning in NumPy.

Those that are one instruction, or a few, are looked for in the machine code, on any host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.functions import ir_module
from codegen.intrinsics import intrinsics_for
from codegen.kit import Kit, T
from codegen.layout.arrays import bf16_from_float32
from platforms.isa import ISA_TABLE, IsaRow, isa_row
from platforms.memory import Arena
from tests.codegen.conftest import INFO, ISAS, ROWS, Array, Link
from tests.codegen.intrinsic_operands import (
    Operands,
    all_halves,
    all_pairs,
    any_floats,
    bytes_and_quads,
    exponents,
    floats_and_bars,
    floats_near_integers,
    floats_to_add_and_multiply,
    floats_to_round,
    gates,
    halves,
    in_rows,
    masks,
    numbers,
    pairs_of_integers,
    pairs_to_add_and_multiply,
    short_sums,
    short_sums_and_quads,
    signed_bytes,
    small_integers,
    summands,
    vectors_to_add_and_multiply,
)

Check = Callable[[Array, Array], None]


def equal(actual: Array, expected: Array) -> None:
    np.testing.assert_array_equal(actual, expected)


def equal_bits(actual: Array, expected: Array) -> None:
    unsigned = np.dtype(f"u{actual.itemsize}")
    np.testing.assert_array_equal(actual.view(unsigned), expected.view(unsigned))


def within(rtol: float, atol: float = 0.0) -> Check:
    return lambda actual, expected: np.testing.assert_allclose(actual, expected, rtol, atol)


# name -> operands for a number of lanes, and how near the result comes to the meaning
CASES: dict[str, tuple[Callable[[int], Operands], Check]] = {
    "sw_mac_bf16": (pairs_to_add_and_multiply, within(1e-6, 4e-6)),
    "sw_bf16_lo": (all_pairs, equal_bits),
    "sw_bf16_hi": (all_pairs, equal_bits),
    "sw_bf16_bits": (lambda _: floats_to_round(1), equal_bits),
    "sw_exp2": (exponents, within(3e-7)),
    "sw_silu_mul": (gates, within(1e-5, 1e-33)),
    "sw_gelu_tanh_mul": (gates, within(1e-5, 1e-33)),
    "sw_tanh": (exponents, within(1e-6, 1e-38)),
    "sw_hmax": (numbers, equal),
    "sw_hsum": (summands, within(1e-6, 1e-5)),
    "sw_mask_from": (masks, equal_bits),
    "sw_mask_below": (masks, equal_bits),
    "sw_any_above": (floats_and_bars, equal),
    "sw_pair_bf16": (small_integers, equal_bits),
    "sw_s8_bf16": (all_halves, equal_bits),
    "sw_four_bits_bf16": (all_pairs, equal_bits),
    "sw_five_bits_bf16": (all_pairs, equal_bits),
    "sw_mac_vector": (vectors_to_add_and_multiply, within(1e-5, 1e-5)),
    "sw_dot_u4": (bytes_and_quads(15, 0), equal),
    "sw_dot_pairs": (pairs_of_integers, equal),
    "sw_odd_bytes": (all_pairs, equal),
    "sw_short_u4": (short_sums_and_quads, equal),
    "sw_add_short": (short_sums, equal),
    "sw_pack_pairs": (signed_bytes, equal),
    "sw_dot_u8": (bytes_and_quads(255, 0), equal),
    "sw_dot_s8": (bytes_and_quads(127, -128), equal),
    "sw_round_int": (floats_near_integers, equal),
    "sw_pack_s8": (signed_bytes, equal),
    "sw_hsum_int": (signed_bytes, equal),
    "sw_hmax_int": (signed_bytes, equal),
    "sw_abs": (any_floats, equal_bits),
    "sw_widen_bf16": (halves, equal_bits),
    "sw_widen_f16": (halves, equal_bits),
}
APART = {"sw_mac_f32", "sw_pack_bf16", "sw_prefetch", "sw_prefetch_l2"}  # tests of their own
# Those that a row shares with the row it extends are slow.
EACH = [
    pytest.param(row, name, id=f"{row.name}-{name}", marks=[pytest.mark.slow] * is_shared)
    for row in ROWS
    for name, intrinsic in intrinsics_for(row).items()
    if name in CASES
    for below in [intrinsics_for(row.extends) if row.extends else {}]
    for is_shared in [below.get(name) is intrinsic]
]
each_row = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name in ISAS], ids=lambda row: row.name
)


def function_of(isa: IsaRow, name: str, operands: Sequence[Array]) -> tuple[Any, list[Array]]:
    """The PrimFunc "apply" of the intrinsic on every row of its operands; result and operands."""
    kit = Kit(isa, "float32")
    dtype, _, width = intrinsics_for(isa)[name].dtype(isa.lanes).partition("x")
    shapes = [(len(operands[0]), int(width or 1)), *(operand.shape for operand in operands)]
    arena = Arena(1 << 20, name)
    dtypes = [np.dtype(dtype), *(operand.dtype for operand in operands)]
    arrays = [arena.array(*spec) for spec in zip(shapes, dtypes, strict=True)]
    for array, operand in zip(arrays[1:], operands, strict=True):
        array[:] = operand

    def build() -> None:
        handles = [T.arg(f"a{i}", T.handle()) for i in range(len(arrays))]
        buffers = [
            T.match_buffer(handle, list(shape), str(dtype))
            for handle, shape, dtype in zip(handles, shapes, dtypes, strict=True)
        ]

        def at(i: int, row: Any) -> list[Any]:
            return [row, kit.ramp(0, shapes[i][1]) if shapes[i][1] > 1 else 0]

        with kit.imports(), T.serial(0, shapes[0][0]) as row:
            values = [buffer[tuple(at(i, row))] for i, buffer in enumerate(buffers)][1:]
            T.buffer_store(buffers[0], kit.call(name, *values), at(0, row))

    return ir_module("apply", build), arrays


def apply(isa: IsaRow, name: str, operands: Sequence[Array], link: Link = load) -> Array:
    """The intrinsic on every row of its operands."""
    func, arrays = function_of(isa, name, operands)
    link(object_code(lower(func, isa)), "apply")(*map(tensor, arrays))
    return arrays[0]


def meaning(isa: IsaRow, name: str, operands: Sequence[Array]) -> Array:
    truth = intrinsics_for(isa)[name].meaning
    with np.errstate(all="ignore"):
        rows = [truth(*row) for row in zip(*operands, strict=True)]
    return np.array(rows).reshape(len(rows), -1)


def test_no_intrinsic_goes_without_a_test() -> None:
    names = {name for row in ISA_TABLE for name in intrinsics_for(row)}
    assert {name for name in names if "_tile_" not in name} == CASES.keys() | APART


def check_meaning(row: IsaRow, name: str, link: Link = load) -> None:
    make_operands, agrees = CASES[name]
    operands = make_operands(row.lanes)
    agrees(apply(row, name, operands, link), meaning(row, name, operands))


@pytest.mark.parametrize(("row", "name"), EACH)
def test_a_spelling_does_what_its_meaning_says(row: IsaRow, name: str) -> None:
    check_meaning(row, name)


@pytest.mark.skipif("avx512_vnni" not in INFO.flags, reason="the CPU has no VNNI")
@pytest.mark.parametrize("name", ["sw_dot_u4", "sw_dot_u8"])
def test_the_256_bit_dot_product_is_right_in_its_other_encoding(name: str) -> None:
    check_meaning(replace(isa_row("avx2_vnni"), mattr=("+avx512vnni", "+avx512vl")), name)


# The instructions of a spelling, in order: what makes a row worth its place.
INSTRUCTIONS = {
    ("avx2", "sw_dot_u4"): ["vpmaddubsw", "vpmaddwd", "vpaddd"],
    ("generic", "sw_dot_pairs"): ["pmaddwd", "paddd"],
    ("avx2", "sw_dot_pairs"): ["vpmaddwd", "vpaddd"],
    ("avx2", "sw_odd_bytes"): ["vpsrlw"],
    ("avx2", "sw_short_u4"): ["vpmaddubsw", "vpaddw"],
    ("avx2", "sw_add_short"): ["vpmaddwd", "vpaddd"],
    ("avx2", "sw_widen_f16"): ["vcvtph2ps"],
    ("avx2_vnni", "sw_dot_u4"): [r"\{vex\}\s+vpdpbusd\s+%ymm"],
    ("avx2_vnni", "sw_dot_u8"): [r"\{vex\}\s+vpdpbusd\s+%ymm"],
    ("avx512", "sw_dot_u4"): ["vpmaddubsw", "vpmaddwd", "vpaddd"],
    ("avx512", "sw_dot_pairs"): ["vpmaddwd", "vpaddd"],
    ("avx512", "sw_short_u4"): ["vpmaddubsw", "vpaddw"],
    ("avx512_vnni", "sw_dot_u4"): [r"vpdpbusd\s.*%zmm"],
    ("avx512_bf16", "sw_dot_u8"): [r"vpdpbusd\s.*%zmm"],
    ("avx512_bf16", "sw_mac_bf16"): ["vdpbf16ps"],
    ("avx512_bf16", "sw_pack_bf16"): ["vcvtneps2bf16"],
    ("neon", "sw_dot_s8"): ["smull", "smull", r"\taddp", "sadalp"],
    ("neon", "sw_mac_f32"): [r"fmla\s+v\d+\.4s"],
    ("neon", "sw_widen_f16"): ["fcvtl"],
    ("neon_dotprod", "sw_dot_u4"): ["sdot"],
    ("neon_dotprod", "sw_dot_s8"): ["sdot"],
    ("neon_i8mm", "sw_dot_u8"): ["usdot"],
    ("neon_bf16", "sw_mac_bf16"): ["bfdot"],
    ("neon_bf16", "sw_pack_bf16"): ["bfcvtn"],
    ("neon_bf16", "sw_bf16_bits"): ["bfcvt"],
}


@pytest.mark.parametrize(("isa", "name"), INSTRUCTIONS, ids="-".join)
def test_a_spelling_becomes_the_instructions_of_its_isa(isa: str, name: str) -> None:
    row = isa_row(isa)
    make_operands, _ = CASES.get(name, (floats_to_round, equal))
    if name == "sw_mac_f32":
        make_operands = floats_to_add_and_multiply
    func, _ = function_of(row, name, make_operands(row.lanes))
    assembly = lower(func, row).inspect_source("asm")
    assert re.search(".*".join(INSTRUCTIONS[isa, name]), assembly, re.DOTALL), assembly


def check_multiply_add(row: IsaRow, link: Link = load) -> None:
    operands = acc, a, b = floats_to_add_and_multiply(row.lanes)
    twice = meaning(row, "sw_mac_f32", operands)
    with np.errstate(all="ignore"):
        once = (acc + a.astype(np.float64) * b).astype(np.float32)
    actual = apply(row, "sw_mac_f32", operands, link)
    agrees = [(actual == truth) | (np.isnan(actual) & np.isnan(truth)) for truth in (once, twice)]
    assert np.logical_or(*agrees).all()


@each_row
def test_a_multiply_add_rounds_once_or_twice(row: IsaRow) -> None:
    check_multiply_add(row)


def check_rounding_of_pairs(row: IsaRow, link: Link = load) -> None:
    (values,) = floats_to_round(row.lanes)
    actual = apply(row, "sw_pack_bf16", (values,), link).view(np.uint16)
    expected = bf16_from_float32(values)
    is_tiny = (values != 0) & (np.abs(values) < 2.0**-126)
    if row.has_bf16_dot and row.arch == "x86_64":  # there subnormal numbers are taken for zero
        assert (actual[is_tiny] & 0x7FFF == 0).all()
        expected[is_tiny] = actual[is_tiny]
    np.testing.assert_array_equal(actual, expected)


@each_row
def test_bf16_pairs_are_rounded_to_nearest_even(row: IsaRow) -> None:
    check_rounding_of_pairs(row)


@each_row
def test_powers_of_whole_numbers_are_exact(row: IsaRow) -> None:
    whole = in_rows(np.arange(-126, 127, dtype=np.float32), row.lanes)
    np.testing.assert_array_equal(apply(row, "sw_exp2", (whole,)), np.exp2(whole))


@each_row
def test_a_prefetch_of_any_address_does_nothing_that_can_be_seen(row: IsaRow) -> None:
    array = Arena(64, "line").array((16,), np.float32)
    array[:] = 1.0

    def build() -> None:
        kit = Kit(row, "float32")
        buffer = T.match_buffer(T.arg("a", T.handle()), [16], "float32")
        with kit.imports():
            for ahead in (0, 64, 1 << 40):
                kit.prefetch(buffer, 0, ahead_bytes=ahead)
                kit.prefetch(buffer, 0, ahead_bytes=ahead, level=2)

    load(object_code(lower(ir_module("prefetch", build), row)), "prefetch")(tensor(array))
    assert (array == 1.0).all()
