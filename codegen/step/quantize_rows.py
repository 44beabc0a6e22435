"""Rounding of activations to int8 on the fly: float32 vectors become words, scales and biases.

Whole rows where there is one scale for a row, else groups of K, by whoever has one complete. Their
truth is codegen.reference.quantize_activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.gemm.register_tile import Activations
from codegen.kit import Expr, Kit, T
from codegen.layout.operands import LARGEST, MOST_INVERSE, Int8Rows


def quantize_row(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, load: Callable[[Expr], Expr]
) -> None:
    """Row `row` of `out`, from its values: load(column) is a float32 vector of the next lanes.

    `load` is called once or twice for every column that is a multiple of lanes and below k; it
    gives zeros from k on.
    """
    layout, lanes = form.weights, kit.lanes
    num_vectors = -(-layout.k // lanes)
    if layout.format.group:
        _each_group(kit, form, out, row, load)
    else:
        _whole_row(kit, form, out, row, load)
    per_word = form.values_per_word
    with T.serial(num_vectors * lanes // per_word, layout.k_padded // per_word) as word:
        T.buffer_store(out.words, T.int32(0), [row, word])


def quantize_group(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, group: Expr, vectors: Sequence[Expr]
) -> None:
    """A group of K of a row of `out`, from its float32 vectors; the last group of a row may have
    fewer of them than the others. Its scale is no finite number if a value is none.
    """
    largest = magnitude_bits(kit, vectors[0])
    for vector in vectors[1:]:
        largest = T.max(largest, magnitude_bits(kit, vector))
    scale, inverse = scale_and_inverse(kit, largest)
    first = group * form.weights.format.group
    total = _store_rounded(kit, form, out, row, first, vectors, inverse)
    _finish(kit, form, out, row, group, scale, total)


def scale_and_inverse(kit: Kit, largest: Expr) -> tuple[Expr, Expr]:
    """The scale that makes the largest of the magnitudes, in lanes as bits, LARGEST; and what to
    multiply values with, a vector.
    """
    most = T.bind(T.reinterpret("float32", kit.call("sw_hmax_int", largest)))
    inverse = T.min(T.float32(LARGEST) / most, T.float32(MOST_INVERSE))
    return T.bind(most / T.float32(LARGEST)), T.bind(kit.splat(T.bind(inverse)))


def _finish(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, group: Expr, scale: Expr, total: Expr
) -> None:
    """Store the scale of a group, and what is made of the sum of its integers, in lanes."""
    T.buffer_store(out.scales, scale, [row, group])
    factor, has_minima = form.bias_factor, form.weights.format.has_minima
    if not (factor or has_minima):
        return
    total = T.bind(kit.call("sw_hsum_int", total))
    if factor:
        T.buffer_store(out.bias, total * -factor, [row, group])
    if has_minima:
        T.buffer_store(out.sums, T.cast(total, "float32") * scale, [row, group])


def _store_rounded(
    kit: Kit,
    form: Int8Rows,
    out: Activations,
    row: Expr,
    column: Expr,
    vectors: Sequence[Expr],
    inverse: Expr,
) -> Expr:
    """Store vectors times `inverse` as integers from `column` on; their sum in lanes."""
    total = None
    for i, vector in enumerate(vectors):
        rounded = T.bind(kit.call("sw_round_int", vector * inverse))
        _store_int8(kit, form, out, row, column + i * kit.lanes, rounded)
        total = rounded if total is None else total + rounded
    return total


def magnitude_bits(kit: Kit, vector: Expr) -> Expr:
    """The bits of magnitudes: integers in the same order, above which lies what is no number."""
    return T.reinterpret(f"int32x{kit.lanes}", kit.call("sw_abs", vector))


def _store_int8(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, column: Expr, integers: Expr
) -> None:
    """Store int32 lanes as words, from value `column` (a multiple of lanes) on."""
    per_word = form.values_per_word
    count = kit.lanes // per_word
    packed = kit.call("sw_pack_s8" if per_word == 4 else "sw_pack_pairs", integers)
    at = column // per_word if count == 1 else kit.ramp(column // per_word, count)
    T.buffer_store(out.words, packed, [row, at])


def _each_group(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, load: Callable[[Expr], Expr]
) -> None:
    """A scale for each group: one look at every value."""
    layout, lanes = form.weights, kit.lanes
    whole, rest = divmod(-(-layout.k // lanes), layout.format.group // lanes)

    def quantize(group: Expr, count: int) -> None:
        first = group * layout.format.group
        vectors = [T.bind(load(first + i * lanes)) for i in range(count)]
        quantize_group(kit, form, out, row, group, vectors)

    with T.serial(0, whole) as group:
        quantize(group, layout.format.group // lanes)
    if rest:
        quantize(whole, rest)


def _whole_row(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, load: Callable[[Expr], Expr]
) -> None:
    """One scale for the row: a look for the largest value, then another to round them."""
    num_vectors = -(-form.weights.k // kit.lanes)
    largest = T.alloc_buffer((kit.lanes,), "int32")
    kit.store(largest, (0,), T.broadcast(T.int32(0), kit.lanes))
    with T.serial(0, num_vectors) as i:
        magnitude = magnitude_bits(kit, load(i * kit.lanes))
        kit.store(largest, (0,), T.max(kit.load(largest, 0), magnitude))
    scale, factor = scale_and_inverse(kit, kit.load(largest, 0))
    sums = T.alloc_buffer((kit.lanes,), "int32")
    kit.store(sums, (0,), T.broadcast(T.int32(0), kit.lanes))
    with T.serial(0, num_vectors) as i:
        rounded = _store_rounded(kit, form, out, row, i * kit.lanes, [load(i * kit.lanes)], factor)
        kit.store(sums, (0,), kit.load(sums, 0) + rounded)
    _finish(kit, form, out, row, 0, scale, kit.load(sums, 0))
