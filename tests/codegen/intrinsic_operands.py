"""What intrinsics are tested on: functions from a number of lanes to rows of operands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codegen.layout.arrays import bf16_from_float32
from tests.codegen.conftest import Array

Operands = tuple[Array, ...]  # each (rows, width); width 1 is a scalar

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
