"""The operators between the GEMMs: RMSNorm, rounding of activations, RoPE with the write to the KV
cache, greedy argmax.

Each function emits the share of one core. Rows are padded to whole vectors and the padding holds
zeros, so loops run over whole vectors and need no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.cores.parallel import split
from codegen.gemm.register_tile import Accumulators
from codegen.kit import Expr, Kit, T
from codegen.model.tables import rotation
from codegen.spec import ModelShape
from codegen.step.arguments import FLOAT_ROWS
from codegen.step.quantize_rows import magnitude_bits, scale_and_inverse
from codegen.step.step import LogitBlock, Step

SUM_CHAINS = 4  # independent accumulators of a row's sum of squares
LOG2_E = 1.4426950408889634


def rms_norm(
    step: Step,
    core: Expr,
    weight: Callable[[Expr], Expr],
    out: str,
    num_rows: Expr,
    source: Callable[[Expr], Expr] = lambda row: row,
) -> None:
    """out[r] = x[source(r)] / rms * weight, as activations (RMSNorm, arXiv 1910.07467)."""
    kit, x, lanes = step.kit, step.b["x"], step.kit.lanes
    num_vectors = step.model.hidden_padded // lanes
    begin, end = split(core, step.spec.num_shares, num_rows)
    with T.serial(begin, end) as row:
        from_row = T.bind(source(row))
        mean = _sum_of_squares(kit, x, from_row, num_vectors) / T.float32(
            step.spec.shape.hidden_size
        )
        scale = kit.splat(
            T.bind(T.float32(1) / T.sqrt(mean + T.float32(step.spec.shape.rms_norm_eps)))
        )
        step.store_row(
            out, row, lambda column: kit.load(x, from_row, column) * scale * weight(column)
        )


def add_normed(step: Step, core: Expr, rows: str, weight: Callable[[Expr], Expr]) -> None:
    """x[t] += rows[t] / its rms * weight, for the tokens of `core`."""
    kit, x, source = step.kit, step.b["x"], step.b[rows]
    num_vectors, shape = step.model.hidden_padded // kit.lanes, step.spec.shape
    begin, end = split(core, step.spec.num_shares, step.num_tokens)
    with T.serial(begin, end) as row:
        mean = _sum_of_squares(kit, source, row, num_vectors) / T.float32(shape.hidden_size)
        root = T.sqrt(mean + T.float32(shape.rms_norm_eps))
        scale = kit.splat(T.bind(T.float32(1) / root))
        with T.serial(0, num_vectors) as i:
            column = T.bind(i * kit.lanes)
            normed = kit.load(source, row, column) * scale * weight(column)
            kit.store(x, (row, column), kit.load(x, row, column) + normed)


def convert_rows(step: Step, core: Expr, out: str) -> None:
    """out[t] = x[t] as activations, for the tokens of `core`."""
    begin, end = split(core, step.spec.num_shares, step.num_tokens)
    with T.serial(begin, end) as row:
        step.store_row(out, row, lambda column: step.kit.load(step.b["x"], row, column))


def quantize_rows(step: Step, core: Expr, name: str) -> None:
    """The activations `name` of every token in int8, from their float32 rows: a scale needs the
    whole row, which several cores wrote.
    """
    kit, rows = step.kit, step.b[name + FLOAT_ROWS]
    num_rows = step.rows_of(step.operators.activations[name])
    begin, end = split(core, step.spec.num_shares, num_rows)
    with T.serial(begin, end) as row:
        step.store_row(name, row, lambda column: kit.load(rows, row, column))


def _sum_of_squares(kit: Kit, x: Expr, row: Expr, num_vectors: int) -> Expr:
    chains = min(SUM_CHAINS, num_vectors)
    acc = Accumulators(kit, 1, chains)
    acc.clear()

    def square(first: Expr, count: int) -> None:
        vectors = [T.bind(kit.load(x, row, (first + c) * kit.lanes)) for c in range(count)]
        acc.add(0, [vector * vector for vector in vectors])

    with T.serial(0, num_vectors // chains) as i:
        square(i * chains, chains)
    if num_vectors % chains:
        square(num_vectors // chains * chains, num_vectors % chains)
    total = acc.row(0)
    for vector in total[1:]:
        total[0] = total[0] + vector
    return kit.call("sw_hsum", total[0])


def rope_and_cache(step: Step, core: Expr, layer: Expr, table: int = 0) -> None:
    """Rotate queries and keys by position (RoPE, arXiv 2104.09864, halves rotated), as table number
    `table` says, and put K and V into the cache.

    Queries leave times `query_scale`. One item of work is one token of one KV head with the query
    heads that share it; a core owns a range of heads before a range of tokens.
    """
    shape = step.spec.shape
    begin, end = split(core, step.spec.num_shares, step.num_tokens * shape.num_kv_heads)
    rotated = T.alloc_buffer((step.kv.head_dim_padded,), "float32", scope="local")
    with T.serial(shape.head_dim, step.kv.head_dim_padded) as d:
        T.buffer_store(rotated, T.float32(0), [d])
    with T.serial(begin, end) as item:
        head = T.bind(item // step.num_tokens)
        token = T.bind(item % step.num_tokens)
        with T.serial(0, shape.group_size) as member:
            _rotate(step, table, token, head * shape.group_size + member, rotated)
            _store_query(step, token, head * shape.group_size + member, rotated)
        _rotate(step, table, token, shape.num_heads + head, rotated)
        _store_key(step, layer, head, token, rotated)
        _store_value(step, layer, head, token, rotated)


def _rotate(step: Step, table: int, token: Expr, column_head: Expr, rotated: Expr) -> None:
    """rotated[:head_dim] = RoPE of head `column_head` of the fused QKV row."""
    source, dim = step.b["qkv_out"], step.spec.shape.head_dim
    half, base = dim // 2, T.bind(column_head * dim)
    position = T.bind(step.b["positions"][token])
    with T.serial(0, half) as d:
        cos, sin = (T.bind(step.b[name][position, d]) for name in rotation(table))
        low, high = T.bind(source[token, base + d]), T.bind(source[token, base + half + d])
        T.buffer_store(rotated, low * cos - high * sin, [d])
        T.buffer_store(rotated, high * cos + low * sin, [half + d])


def query_scale(shape: ModelShape) -> float:
    """What queries are scaled by before they are stored: their products with keys are ready for a
    softmax in powers of two, or for the tanh of their soft cap.
    """
    cap = shape.traits.score_cap
    return shape.score_scale * (1 / cap if cap else LOG2_E)


def _store_query(step: Step, token: Expr, head: Expr, rotated: Expr) -> None:
    kit, padded = step.kv_kit, step.kv.head_dim_padded
    scale = kit.splat(query_scale(step.spec.shape))
    with T.serial(0, padded // kit.lanes) as i:
        vector = kit.load(rotated, i * kit.lanes) * scale
        kit.store_act(step.b["queries"], token, head * padded + i * kit.lanes, vector)


def _store_key(step: Step, layer: Expr, head: Expr, token: Expr, rotated: Expr) -> None:
    slot, size = T.bind(step.b["slots"][token]), step.kv.block_size
    if step.kv.format.has_scales:
        block, offset = [layer, head, slot // size], T.bind(slot % size)
        codes = _rounded_head(step, "key_scales", [*block, offset], rotated)
        bytes_ = _as_parts(step, "keys", "int8")
        with T.serial(0, step.spec.shape.head_dim) as d:
            T.buffer_store(bytes_, codes[d], [*block, d // 2, offset * 2 + d % 2])
        return
    with T.serial(0, step.spec.shape.head_dim // step.kv.kr) as i:
        if step.kv.kr == 1:
            word = rotated[i]
        else:
            low, high = bf16_bits(step, rotated[i * 2]), bf16_bits(step, rotated[i * 2 + 1])
            word = T.cast(low, "int32") | (T.cast(high, "int32") << 16)
        T.buffer_store(step.b["keys"], word, [layer, head, slot // size, i, slot % size])


def _store_value(step: Step, layer: Expr, head: Expr, token: Expr, head_row: Expr) -> None:
    """Put the token's V into its half of the words it shares with its neighbour. head_row: memory
    for a head, with zeros behind it.

    The last token of a sequence's run also clears the other half, so that a product with it is
    never NaN.
    """
    shape, kv, source = step.spec.shape, step.kv, step.b["qkv_out"]
    slot = T.bind(step.b["slots"][token])
    base = T.bind((shape.num_heads + shape.num_kv_heads + head) * shape.head_dim)
    row = [layer, head, slot // kv.block_size, slot % kv.block_size // kv.kr]
    if kv.kr == 1:
        with T.serial(0, shape.head_dim) as d:
            T.buffer_store(step.b["values"], source[token, base + d], [*row, d])
        return
    parity = T.bind(slot % 2)
    if kv.format.has_scales:
        with T.serial(0, shape.head_dim) as d:
            T.buffer_store(head_row, source[token, base + d], [d])
        at = [*row[:-1], slot % kv.block_size]
        codes = _rounded_head(step, "value_scales", at, head_row)
        bytes_ = _as_parts(step, "values", "int8")
        with T.serial(0, shape.head_dim) as d:
            T.buffer_store(bytes_, codes[d], [*row, d * 2 + parity])
        return
    halves = _as_parts(step, "values", "uint16")
    with T.serial(0, shape.head_dim) as d:
        T.buffer_store(halves, bf16_bits(step, source[token, base + d]), [*row, d * 2 + parity])
    next_slot = step.b["slots"][T.min(token + 1, step.num_tokens - 1)]
    with T.If(T.And(parity == 0, next_slot != slot + 1)), T.Then():
        with T.serial(0, shape.head_dim) as d:
            T.buffer_store(halves, T.uint16(0), [*row, d * 2 + 1])


def _as_parts(step: Step, name: str, dtype: str) -> Expr:
    """Keys or values by the halves of their words."""
    whole = step.b[name]
    columns = int(whole.shape[-1]) * 2
    return T.decl_buffer([*whole.shape[:-1], columns], dtype, data=whole.data)


def _rounded_head(step: Step, scales: str, at: Sequence[Expr], values: Expr) -> Expr:
    """The values of a head, (head_dim_padded,) float32 with zeros at the end, as int8; their scale,
    the largest magnitude over LARGEST, goes to `scales` at `at`.
    """
    kit, padded = step.kv_kit, step.kv.head_dim_padded
    codes = T.alloc_buffer((padded,), "int8", scope="local")
    largest = None
    for first in range(0, padded, kit.lanes):
        bits = magnitude_bits(kit, kit.load(values, first))
        largest = bits if largest is None else T.max(largest, bits)
    scale, inverse = scale_and_inverse(kit, largest)
    T.buffer_store(step.b[scales], scale, at)
    for first in range(0, padded, kit.lanes):
        rounded = kit.call("sw_round_int", kit.load(values, first) * inverse)
        kit.store(codes, (first,), T.cast(rounded, f"int8x{kit.lanes}"))
    return codes


def bf16_bits(step: Step, value: Expr) -> Expr:
    """The uint16 bits of a scalar rounded to bf16."""
    return step.kv_kit.call("sw_bf16_bits", value)


def argmax_share(step: Step, core: Expr, rows: LogitBlock) -> None:
    """best_*[core, r]: the largest logit and its lowest id among the columns of this core."""
    kit, lanes, vocab = step.kit, step.kit.lanes, step.spec.shape.vocab_size
    begin, end = split(core, step.spec.num_shares, -(-vocab // lanes))
    values = T.alloc_buffer((lanes,), "float32", scope="local")
    ids = T.alloc_buffer((lanes,), "int32", scope="local")
    with T.serial(0, rows.count) as row:
        kit.store(values, (0,), kit.splat(float("-inf")))
        kit.store(ids, (0,), T.broadcast(T.int32(vocab), lanes))
        with T.serial(begin, end) as i:
            logits = kit.load(step.b["logits"], row, i * lanes)
            seen = T.bind(kit.call("sw_mask_from", logits, vocab - i * lanes))
            better = seen > kit.load(values, 0)
            kit.store(ids, (0,), T.Select(better, kit.ramp(i * lanes), kit.load(ids, 0)))
            kit.store(values, (0,), T.Select(better, seen, kit.load(values, 0)))
        _pick(
            step.b["best_values"],
            step.b["best_ids"],
            [core, row],
            lanes,
            lambda lane: values[lane],
            lambda lane: ids[lane],
        )


def argmax_of_shares(step: Step, core: Expr, rows: LogitBlock) -> None:
    """argmax[r] and peaks[r]: the best of the cores' shares, and its logit."""
    begin, end = split(core, step.spec.num_shares, rows.count)
    values, ids = step.b["best_values"], step.b["best_ids"]
    with T.serial(begin, end) as row:
        _pick(
            values,
            ids,
            [0, row],
            step.spec.num_shares,
            lambda other: values[other, row],
            lambda other: ids[other, row],
        )
        found = T.bind(ids[0, row])  # vocab_size where no logit is above -inf: then all are equal
        lowest = T.Select(found < step.spec.shape.vocab_size, found, 0)
        T.buffer_store(step.b["argmax"], lowest, [rows.first + row])
        peak = step.b["logits"][row, lowest]  # that of token 0 says what is wrong with a row
        T.buffer_store(step.b["peaks"], peak, [rows.first + row])


def _pick(
    best_values: Expr,
    best_ids: Expr,
    at: list[Expr],
    count: int,
    value: Callable[[Expr], Expr],
    token_id: Callable[[Expr], Expr],
) -> None:
    """best[at] = the largest of `count` candidates, the lowest id among equals."""
    T.buffer_store(best_values, value(0), at)
    T.buffer_store(best_ids, token_id(0), at)
    with T.serial(1, count) as i:
        better = T.Or(
            value(i) > best_values[tuple(at)],
            T.And(value(i) == best_values[tuple(at)], token_id(i) < best_ids[tuple(at)]),
        )
        with T.If(better), T.Then():
            T.buffer_store(best_values, value(i), at)
            T.buffer_store(best_ids, token_id(i), at)
