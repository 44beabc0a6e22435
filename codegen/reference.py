"""The slow truth of every kernel: what each one computes, in plain NumPy.

Functions take and return float32; where a kernel reads packed memory, the layout says so.
"bfloat16" means that both inputs of a product are rounded to bf16 and the sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import (
    Array,
    Floats,
    bf16_from_float32,
    float32_from_bf16,
    round_up,
    widen,
)
from codegen.layout.model import KvLayout
from codegen.layout.operands import LARGEST, MOST_INVERSE
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.layout.quantize import QuantizedRows
from codegen.model.tables import head_norms
from codegen.spec import MAX_TOP, Activation, Experts, ModelShape, WeightFormat

Ints = npt.NDArray[np.int32]


def round_to(values: Floats, dtype: str) -> Floats:
    """The float32 values that `dtype` can hold, nearest to `values`."""
    return float32_from_bf16(bf16_from_float32(values)) if dtype == "bfloat16" else values


def gemm(x: Floats, weight: Floats, dtype: str, bias: Floats | None = None) -> Floats:
    """x (m, k) times weight (n, k), transposed, plus bias (n,): (m, n)."""
    product = round_to(x, dtype) @ round_to(weight, dtype).T
    return product if bias is None else product + bias


def quantize_activations(x: Floats, group: int = 0) -> tuple[npt.NDArray[np.int8], Floats]:
    """x (m, k) rounded to int8, and its scales (m, 1), or (m, groups) of `group` values of k each.

    A scale is the largest magnitude over LARGEST; that of zeros is 0. It is no finite number where
    a value is none.
    """
    count, k = x.shape
    padded = np.zeros((count, round_up(k, group or k)), np.float32)
    padded[:, :k] = x
    groups = padded.reshape(count, -1, group or k)
    largest = np.abs(groups).max(axis=2)
    with np.errstate(all="ignore"):  # of zeros, and what is no number
        inverse = np.minimum(np.float32(LARGEST) / largest, np.float32(MOST_INVERSE))
        rounded = np.nan_to_num(np.rint(groups * inverse[..., None])).astype(np.int8)
    return rounded.reshape(count, -1)[:, :k], largest / np.float32(LARGEST)


def rounded_activations(x: Floats, group: int = 0) -> Floats:
    """x (m, k) as products of integers see it: each integer times its scale."""
    integers, scales = quantize_activations(x, group)
    return integers * (np.repeat(scales, group, axis=1)[:, : x.shape[1]] if group else scales)


def integer_gemm(
    a: npt.NDArray[np.int8], a_scales: Floats, w: QuantizedRows, weights: WeightFormat
) -> Floats:
    """a (m, k) times the rows of w (n, k), transposed: (m, n). Groups are multiplied in integers,
    scaled, and added in ascending order, each before its minimum times the group's sum of a;
    `a_scales` are those of `quantize_activations`, for the groups of the weights if they have any.
    """
    k, size = a.shape[1], weights.group or a.shape[1]
    product = np.zeros((len(a), len(w.codes)), np.float32)
    for group, start in enumerate(range(0, k, size)):
        part = slice(start, min(start + size, k))
        zeros = weights.zero_code if w.zero_points is None else w.zero_points[:, group, None]
        values = w.codes[:, part].astype(np.int32) - zeros
        sums = (a[:, part].astype(np.int64) @ values.T.astype(np.int64)).astype(np.float32)
        if weights.group:
            sums *= a_scales[:, group, None]
        product += sums * w.scales[:, group]
        if w.minima is not None:
            totals = a[:, part].sum(axis=1, dtype=np.int32).astype(np.float32)
            product += (totals * a_scales[:, group])[:, None] * w.minima[:, group]
    return product if weights.group else product * a_scales


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x (m, k) over its root mean square, times weight (k,)."""
    mean_square: Floats = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


def norm_heads(shape: ModelShape, qkv: Floats, norm: Callable[[str, Floats], Floats]) -> Floats:
    """qkv (tokens, columns of q, k and v heads) with its queries and keys normed as `shape` says;
    norm(role, x) norms the last axis of x with the weight of that role.
    """
    normed, first = qkv.copy(), 0
    for each in head_norms(shape):
        stop = first + each.count * each.size
        columns = qkv[:, first:stop].reshape(len(qkv), each.count, each.size)
        normed[:, first:stop] = norm(each.role, columns).reshape(len(qkv), -1)
        first = stop
    return normed


def rope(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Rotate x (tokens, heads, head_dim) by its tokens' cos, sin (tokens, head_dim / 2).

    Dim i pairs with dim i + head_dim / 2 ("rotate half", the order of Hugging Face checkpoints).
    """
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    cos, sin = cos[:, None, :], sin[:, None, :]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin), axis=-1)


@dataclass(frozen=True)
class Routes:
    """The experts of tokens: ids (tokens, per_token), ascending, and their shares, and the rows of
    the experts: those of the first before those of the second, of each in the order of tokens.
    """

    ids: Ints
    shares: Floats

    @staticmethod
    def of(logits: Floats, experts: Experts) -> Routes:
        """By a router's logits (tokens, experts); the lower number among equals."""
        order = np.argsort(-logits, axis=1, kind="stable")
        ids = np.sort(order[:, : experts.per_token], axis=1).astype(np.int32)
        shares = np.take_along_axis(softmax(logits), ids, axis=1)
        if experts.is_normalised:
            shares = shares / shares.sum(axis=1, keepdims=True)
        return Routes(ids, shares)

    @property
    def _order(self) -> npt.NDArray[np.intp]:
        """Of each row, its place among all ids."""
        return np.argsort(self.ids, axis=None, kind="stable")

    def gather(self, x: Floats) -> Floats:
        """The rows of the experts, out of those of the tokens."""
        return x[self._order // self.ids.shape[1]]

    def each(self, x: Floats, product: Callable[[int, Floats], Floats]) -> Floats:
        """product(expert, its rows of x), one below the other, for the experts that have rows."""
        ids, counts = np.unique(self.ids, return_counts=True)
        parts = np.split(x, np.cumsum(counts)[:-1])
        found = [product(int(i), part) for i, part in zip(ids, parts, strict=True)]
        return np.concatenate(found)

    def collect(self, y: Floats) -> Floats:
        """The sum over a token's experts, in order, of its row of y times its share."""
        rows = np.empty(self.ids.size, np.intp)
        rows[self._order] = np.arange(self.ids.size)
        total = np.zeros((len(self.ids), y.shape[1]), np.float32)
        for of_place, share in zip(rows.reshape(self.ids.shape).T, self.shares.T, strict=True):
            total += y[of_place] * share[:, None]
        return total


def silu_mul(gate: Floats, up: Floats) -> Floats:
    """SiLU(gate) * up, the activation of a Llama MLP."""
    with np.errstate(over="ignore"):  # exp(-gate) = inf is right: the result is then -0.0
        sigmoid: Floats = np.reciprocal(np.float32(1) + np.exp(-gate))
    return gate * sigmoid * up


def gelu_tanh_mul(gate: Floats, up: Floats) -> Floats:
    """GELU(gate) * up, with the approximation by tanh (arXiv 1606.08415)."""
    inner: Floats = np.float32((2 / np.pi) ** 0.5) * (
        gate + np.float32(0.044715) * gate * gate * gate
    )
    share: Floats = (np.float32(1) + np.tanh(inner)).astype(np.float32)
    return np.float32(0.5) * gate * share * up


def gated(gate: Floats, up: Floats, activation: Activation) -> Floats:
    """The gate through the activation, times up."""
    match activation:
        case Activation.SILU:
            return silu_mul(gate, up)
        case Activation.GELU_TANH:
            return gelu_tanh_mul(gate, up)


def _values_of(words: Array, kv: KvLayout) -> Array:
    """One layer's words with their values as a last axis of kr, a view."""
    parts = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}
    return words.view(parts[kv.dtype]).reshape(*words.shape, kv.kr)


def _stored(new: Floats, scales: Array | None, at: tuple[Ints, Ints], kv: KvLayout) -> Array:
    """New keys or values (tokens, kv_heads, head_dim) as they are stored; their scales are stored
    at blocks and offsets.
    """
    if scales is None:
        return bf16_from_float32(new) if kv.dtype == "bfloat16" else new
    blocks, offsets = at
    integers, found = quantize_activations(new.reshape(-1, kv.head_dim))
    scales[:, blocks, offsets] = found.reshape(len(new), -1).T
    return integers.reshape(new.shape)


def write_kv(
    keys: Array,
    values: Array,
    new_keys: Floats,
    new_values: Floats,
    slots: Ints,
    kv: KvLayout,
    scales: Sequence[Array] = (),
) -> None:
    """Write new_keys and new_values (tokens, kv_heads, head_dim) into one layer's cache, in place.

    keys, values, scales: one layer of what `kv.tensor_specs()` says, scales of keys before those of
    values; slots (tokens,): block * block_size + offset.
    """
    blocks, offsets = at = np.divmod(slots, kv.block_size)
    of_keys, of_values = scales or (None, None)
    shape = (len(slots), kv.num_kv_heads, kv.head_dim // kv.kr, kv.kr)
    paired = _stored(new_keys, of_keys, at, kv).reshape(shape)
    _values_of(keys, kv)[:, blocks, :, offsets, :] = paired
    row, half = np.divmod(offsets, kv.kr)
    stored = _stored(new_values, of_values, at, kv)
    _values_of(values, kv)[:, blocks, row, : kv.head_dim, half] = stored


def read_kv(
    keys: Array,
    values: Array,
    block_table: Ints,
    num_tokens: int,
    kv: KvLayout,
    scales: Sequence[Array] = (),
) -> tuple[Floats, Floats]:
    """One sequence's keys and values out of one layer's cache: (kv_heads, tokens, head_dim)."""
    blocks = block_table[: -(-num_tokens // kv.block_size)]
    shape = (kv.num_kv_heads, len(blocks) * kv.block_size, -1)
    # keys (heads, blocks, dims / kr, tokens, kr) -> tokens before dims
    found_keys = _values_of(keys, kv)[:, blocks].transpose(0, 1, 3, 2, 4).reshape(shape)
    # values (heads, blocks, tokens / kr, dims, kr) -> kr beside tokens
    found_values = _values_of(values, kv)[:, blocks].transpose(0, 1, 2, 4, 3).reshape(shape)
    found = found_keys[:, :num_tokens], found_values[:, :num_tokens, : kv.head_dim]
    widened_keys, widened_values = (widen(part) for part in found)
    if not scales:
        return widened_keys, widened_values
    of_keys, of_values = (widen(each[:, blocks].reshape(shape)[:, :num_tokens]) for each in scales)
    return widened_keys * of_keys, widened_values * of_values


def soft_cap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap), x itself for a cap of 0."""
    return x if not cap else np.float32(cap) * np.tanh(x / np.float32(cap))


def softmax(scores: Floats) -> Floats:
    """exp(scores) over its sum along the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    normalised: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return normalised


def paged_attention(
    queries: Floats,
    keys: Array,
    values: Array,
    query_starts: Ints,
    context_lens: Ints,
    block_tables: Ints,
    kv: KvLayout,
    window: int = 0,
    scale: float = 0.0,
    cap: float = 0.0,
    scales: Sequence[Array] = (),
) -> Floats:
    """Causal attention of every token over its own sequence in the cache: (tokens, heads, dim).

    queries (tokens, heads, head_dim); keys, values, scales: one layer of the cache, the new tokens
    already written; query_starts (seqs + 1,), context_lens (seqs,), block_tables (seqs, most blocks
    of one). The queries of a sequence are its last tokens: a prefill chunk, or one token of decode.
    window: keys that a query sees, its own and those just before it; 0 for all. scale: of the
    products of queries and keys, 0 for one over the root of head_dim; cap: their soft cap, 0 for
    none.
    """
    output = np.empty_like(queries)
    group = queries.shape[1] // kv.num_kv_heads
    factor = np.float32(scale or kv.head_dim**-0.5)
    for seq, context_len in enumerate(context_lens):
        rows = slice(query_starts[seq], query_starts[seq + 1])
        num_queries = rows.stop - rows.start
        blocks, length = block_tables[seq], int(context_len)
        seq_keys, seq_values = read_kv(keys, values, blocks, length, kv, scales)
        positions = np.arange(context_len - num_queries, context_len)
        is_hidden = np.arange(context_len)[None, :] > positions[:, None]  # (queries, context)
        if window:
            is_hidden |= np.arange(context_len)[None, :] <= positions[:, None] - window
        for head in range(queries.shape[1]):
            products = queries[rows, head] @ seq_keys[head // group].T
            scores = soft_cap(products * factor, cap)
            scores[is_hidden] = -np.inf
            output[rows, head] = softmax(scores) @ seq_values[head // group]
    return output


def embedding(table: Array, token_ids: Ints) -> Floats:
    """Rows of a row-major table (vocab, hidden), float32 or bf16 bit patterns: (tokens, hidden)."""
    return widen(table[token_ids])


def embedding_from_panels(packed: PackedMatrix, token_ids: Ints, lm_head: PanelLayout) -> Floats:
    """Rows of a tied embedding, read out of the LM head's panels: (tokens, hidden)."""
    return lm_head.read_rows(packed, token_ids)


def scores(
    logits: Floats, targets: Sequence[int], num_tops: Sequence[int]
) -> tuple[Floats, Floats, Ints, Ints, Floats]:
    """Of each row of logits (rows, vocab): the sum of exp(logit - peak), the target's logit and its
    rank, ids and logits (rows, MAX_TOP) of the `num_tops[row]` likeliest tokens, and zeros.

    Tokens are in order of descending logits, the lower id first among equals; ranks begin at 1.
    """
    count = len(logits)
    peaks = logits[np.arange(count), argmax(logits)]
    totals = np.exp((logits - peaks[:, None]).astype(np.float64)).sum(axis=1)
    chosen, ranks = np.zeros(count, np.float32), np.ones(count, np.int32)
    top_ids, top_logits = (
        np.zeros((count, MAX_TOP), np.int32),
        np.zeros((count, MAX_TOP), np.float32),
    )
    for row, (target, num_top) in enumerate(zip(targets, num_tops, strict=True)):
        bar = chosen[row] = logits[row, max(target, 0)]
        before = (logits[row] > bar).sum() + (logits[row, : max(target, 0)] == bar).sum()
        ranks[row] += before
        best = np.argsort(-logits[row], kind="stable")[:num_top]
        top_ids[row, : len(best)], top_logits[row, : len(best)] = best, logits[row, best]
    return totals.astype(np.float32), chosen, ranks, top_ids, top_logits


def argmax(logits: Floats) -> Ints:
    """The token with the highest logit of each row (rows, vocab); the lowest id wins a tie."""
    return np.argmax(logits, axis=-1).astype(np.int32)
