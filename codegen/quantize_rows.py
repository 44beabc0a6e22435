"""Rounding of activations to int8 on the fly: a row becomes words, scales and biases.

Emits one row; whoever has the rows shares them between cores. Its truth is
codegen.reference.quantize_activations.
"""

from __future__ import annotations

from collections.abc import Callable

from codegen.kit import Expr, Kit, T
from codegen.operands import Int8Rows
from codegen.register_tile import Activations

LARGEST = 127.0


def quantize_row(
    kit: Kit, form: Int8Rows, out: Activations, row: Expr, load: Callable[[Expr], Expr]
) -> None:
    """Row `row` of `out`, from its values: load(column) is a float32 vector of the next lanes.

    `load` is called twice for every column that is a multiple of lanes and below k; it gives zeros
    from k on.
    """
    layout, lanes = form.weights, kit.lanes
    num_vectors = -(-layout.k // lanes)
    per_group = layout.group_words * layout.kr // lanes if layout.format.group else num_vectors
    sums = T.alloc_buffer((lanes,), "int32")
    inverse = None
    if not form.has_group_scales:
        inverse = _scale(kit, out, row, 0, load, 0, num_vectors)
    with T.serial(0, layout.num_groups) as group:
        begin = T.bind(group * per_group)
        end = T.bind(T.min(begin + per_group, num_vectors))
        if form.has_group_scales:
            inverse = _scale(kit, out, row, group, load, begin, end)
        kit.store(sums, (0,), T.broadcast(T.int32(0), lanes))
        with T.serial(begin, end) as i:
            rounded = T.bind(kit.call("sw_round_int", load(i * lanes) * inverse))
            store_int8(kit, out.words, row, i * lanes, rounded)
            kit.store(sums, (0,), kit.load(sums, 0) + rounded)
        total = kit.call("sw_hsum_int", kit.load(sums, 0))
        T.buffer_store(out.bias, total * -form.bias_factor, [row, group])
    with T.serial(num_vectors * lanes // 4, layout.k_padded // 4) as word:
        T.buffer_store(out.words, T.int32(0), [row, word])


def store_int8(kit: Kit, words: Expr, row: Expr, column: Expr, integers: Expr) -> None:
    """Store int32 lanes as bytes, from value `column` (a multiple of lanes) on."""
    quarter = kit.lanes // 4
    packed = kit.call("sw_pack_s8", integers)
    at = column // 4 if quarter == 1 else kit.ramp(column // 4, quarter)
    T.buffer_store(words, packed, [row, at])


def _scale(
    kit: Kit,
    out: Activations,
    row: Expr,
    group: Expr,
    load: Callable[[Expr], Expr],
    begin: Expr,
    end: Expr,
) -> Expr:
    """Store the scale of vectors [begin, end); the vector that they are to be multiplied with."""
    largest = T.alloc_buffer((kit.lanes,), "float32")
    kit.store(largest, (0,), kit.zeros())
    with T.serial(begin, end) as i:
        magnitude = kit.call("sw_abs", load(i * kit.lanes))
        kit.store(largest, (0,), T.max(kit.load(largest, 0), magnitude))
    most = T.bind(kit.call("sw_hmax", kit.load(largest, 0)))
    T.buffer_store(out.scales, most / T.float32(LARGEST), [row, group])
    inverse = T.if_then_else(most > T.float32(0), T.float32(LARGEST) / most, T.float32(0))
    return T.bind(kit.splat(T.bind(inverse)))
