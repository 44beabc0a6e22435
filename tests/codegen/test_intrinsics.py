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
from codegen.intrinsics import intrinsics_for
from codegen.kit import Kit, T, prim_func
from codegen.layout.arrays import bf16_from_float32
from platforms.isa import ISA_TABLE, IsaRow, isa_row
from platforms.memory import Arena
from tests.codegen.conftest import INFO, ISAS, ROWS, Array, Link

Operands = tuple[Array, ...]  # each (rows, width); width 1 is a scalar
Check = Callable[[Array, Array], None]

INF, NAN = float("inf"), float("nan")
SPECIALS = np.array(
    [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 2.0**-126, 3e38, -3e38, 0.1, 2.0**-133, -(2.0**-149)],
    np.float32,
)
# Ties between two bf16 values, the neighbours of ties, the last number before infinity, NaNs.
TIES = np.array(
    [
        *(0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000),
        *(0x3F807FFF, 0x3F808001, 0x3F817FFF, 0x3F818001),
        *(0x7F7F7FFF, 0x7F7F8000, 0x7F800001, 0xFF812345, 0x7FFFFFFF),
    ],
    np.uint32,
).view(np.float32)


def in_rows(values: Array, width: int) -> Array:
    """All of them in rows, the first ones again at the end of the last row."""
    return np.resize(values, (-(-len(values) // width), width))


def normal(rows: int, width: int, seed: int) -> Array:
    values = np.random.default_rng(seed).standard_normal((rows, width)) * 4
    return values.astype(np.float32)


def random_floats(count: int, seed: int) -> Array:
    """Of all magnitudes, subnormal, infinite and not a number among them."""
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32).view(np.float32)


def pairs(values: Array) -> Array:
    """(rows, 2 n) floats as (rows, n) words of two bf16."""
    return bf16_from_float32(values).view(np.int32)


def floats_to_add_and_multiply(lanes: int) -> Operands:
    acc, b = np.array(np.meshgrid(SPECIALS, SPECIALS), np.float32).reshape(2, -1)
    rows = np.concatenate((in_rows(acc, lanes), normal(99, lanes, 0)))
    factors = np.concatenate((in_rows(b, lanes), normal(99, lanes, 1)))
    scalars = np.concatenate((SPECIALS, normal(30, 1, 2)[:, 0]))
    return rows, np.resize(scalars, (len(rows), 1)), factors


def pairs_to_add_and_multiply(lanes: int) -> Operands:
    values = np.array([0.0, -0.0, 1.0, -2.5, INF, -INF, NAN, 255.0], np.float32)
    special = pairs(np.array(np.meshgrid(values, values)).reshape(2, -1).T)
    b = np.concatenate((in_rows(special, lanes), pairs(normal(99, 2 * lanes, 0))))
    acc = normal(len(b), lanes, 1)
    return acc, pairs(normal(len(b), 2, 2)), b


def all_pairs(lanes: int) -> Operands:
    halves = np.arange(1 << 16, dtype=np.uint32)
    return (in_rows(halves | halves[::-1] << 16, lanes).view(np.int32),)


def floats_to_round(lanes: int) -> Operands:
    return (in_rows(np.concatenate((SPECIALS, TIES, random_floats(20_000, 0))), lanes),)


def exponents(lanes: int) -> Operands:
    ends = np.array([-126.0, 126.0, 0.0, -0.0], np.float32)
    near = [ends, *(np.nextafter(ends, np.float32(end)) for end in (-INF, INF))]
    grid = np.arange(-130, 130, 1 / 16, dtype=np.float32)
    noise = np.random.default_rng(0).uniform(-127, 127, 5000).astype(np.float32)
    return (in_rows(np.concatenate((*near, SPECIALS, grid, noise)), lanes),)


def gates(lanes: int) -> Operands:
    special = SPECIALS[~(SPECIALS < -1e30)]  # beyond, 2**126 is too little for an exponential
    values = np.concatenate((special, np.arange(-100, 100, 1 / 8, dtype=np.float32)))
    gate = in_rows(values, lanes)
    return gate, normal(len(gate), lanes, 0)


def numbers(lanes: int) -> Operands:
    infinite = np.full((1, lanes), -INF, np.float32)
    return (
        np.concatenate((infinite, in_rows(SPECIALS[~np.isnan(SPECIALS)], lanes), *largest(lanes))),
    )


def largest(lanes: int) -> list[Array]:
    """Rows whose largest value is in each lane in turn."""
    return [np.roll(np.arange(lanes, dtype=np.float32), shift)[None] for shift in range(lanes)]


def summands(lanes: int) -> Operands:
    return (np.concatenate((in_rows(SPECIALS[:5], lanes), normal(99, lanes, 0))),)


def masks(lanes: int) -> Operands:
    counts = [-3, 0, 1, lanes - 1, lanes, lanes + 3]
    scores = np.concatenate((in_rows(SPECIALS, lanes), normal(5, lanes, 0)))
    return np.tile(scores, (len(counts), 1)), np.repeat(counts, len(scores))[:, None].astype(
        np.int32
    )


def bytes_and_quads(largest: int, smallest: int) -> Callable[[int], Operands]:
    """Accumulators, four signed bytes within [-127, 127], and lanes of four weights in a range."""

    def make(lanes: int) -> Operands:
        rng = np.random.default_rng(0)
        w = rng.integers(smallest, largest + 1, (200, 4 * lanes)).astype(np.uint8)
        w[:4] = np.array([[largest], [smallest], [0], [largest]], np.int16).astype(np.uint8)
        a = rng.integers(-127, 128, (200, 4)).astype(np.int8)
        a[:4] = [[127], [127], [-127], [-127]]
        acc = rng.integers(-(1 << 30), 1 << 30, (200, lanes)).astype(np.int32)
        return acc, a.view(np.int32), w.view(np.int32)

    return make


def pairs_of_integers(lanes: int) -> Operands:
    """Accumulators, two activations of 16 bits, and lanes of two weights of a byte each."""
    rng = np.random.default_rng(0)
    w = rng.integers(0, 256, (200, 2 * lanes)).astype(np.int16)
    w[:2] = 255
    a = rng.integers(-127, 128, (200, 2)).astype(np.int16)
    a[:2] = [[127], [-127]]
    acc = rng.integers(-(1 << 30), 1 << 30, (200, lanes)).astype(np.int32)
    return acc, a.view(np.int32), w.view(np.int32)


def short_sums_and_quads(lanes: int) -> Operands:
    """Sums of 16 bits to which seven products were added, quads of activations, and nibbles."""
    _, a, w = bytes_and_quads(15, 0)(lanes)
    most = 7 * 2 * 15 * 127
    sums = np.random.default_rng(1).integers(-most, most + 1, (len(w), 2 * lanes)).astype(np.int16)
    sums[:4] = [[most], [most], [-most], [-most]]
    return sums.view(np.int32), a, w


def short_sums(lanes: int) -> Operands:
    sums, _, _ = short_sums_and_quads(lanes)
    acc = np.random.default_rng(2).integers(-(1 << 30), 1 << 30, sums.shape).astype(np.int32)
    return acc, sums


def vectors_to_add_and_multiply(lanes: int) -> Operands:
    return tuple(normal(99, lanes, seed) for seed in range(3))


def floats_near_integers(lanes: int) -> Operands:
    grid = np.arange(-130, 130, 1 / 8, dtype=np.float32)
    near = [np.nextafter(grid, np.float32(end)) for end in (-INF, INF)]
    return (in_rows(np.concatenate((grid, *near)), lanes),)


def signed_bytes(lanes: int) -> Operands:
    return (in_rows(np.arange(-128, 128, dtype=np.int32), lanes),)


def floats_and_bars(lanes: int) -> Operands:
    """Each lane in turn is the only one above, at, or no number beside a bar."""
    vectors, bars = [], []
    for bar in (0.0, -INF, INF, 1.5, NAN):
        for value in (bar, np.nextafter(np.float32(bar), INF), NAN, INF):
            rows = np.full((lanes, lanes), -INF, np.float32)
            np.fill_diagonal(rows, value)
            vectors.append(rows)
            bars += [bar] * lanes
    return np.concatenate(vectors), np.array(bars, np.float32)[:, None]


def any_floats(lanes: int) -> Operands:
    return (in_rows(SPECIALS, lanes),)


def halves(lanes: int) -> Operands:
    """All finite float16."""
    bits = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    return (in_rows(bits[np.isfinite(bits.view(np.float16))], lanes),)


def small_integers(lanes: int) -> Operands:
    low = in_rows(np.arange(-256, 257, dtype=np.float32), lanes)
    return low, -low[::-1]


def all_halves(lanes: int) -> Operands:
    return (in_rows(np.arange(1 << 16, dtype=np.uint32).astype(np.int16), lanes),)


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
    "sw_hmax": (numbers, equal),
    "sw_hsum": (summands, within(1e-6, 1e-5)),
    "sw_mask_from": (masks, equal_bits),
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

    return prim_func("apply", build), arrays


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

    load(object_code(lower(prim_func("prefetch", build), row)), "prefetch")(tensor(array))
    assert (array == 1.0).all()
