"""The NumPy truth agrees with torch and transformers, and with the layouts it reads through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from codegen import reference
from codegen.layout.arrays import bf16_from_float32, float32_from_bf16
from codegen.layout.model import KvLayout
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.spec import WeightFormat

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def make_cache(kv: KvLayout) -> tuple[np.ndarray, np.ndarray]:
    """One layer of an empty cache."""
    return np.zeros(kv.keys.shape[1:], kv.word_dtype), np.zeros(kv.values.shape[1:], kv.word_dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 7, 5), (17, 33, 64)])
def test_gemm_agrees_with_torch(m: int, n: int, k: int, dtype: str) -> None:
    x, weight, bias = normal(m, k), normal(n, k), normal(n)
    kind = getattr(torch, dtype)
    left, right = (torch.from_numpy(a).to(kind).float() for a in (x, weight))
    expected = left @ right.T + torch.from_numpy(bias)
    np.testing.assert_allclose(reference.gemm(x, weight, dtype, bias), expected, atol=1e-5)


def test_rms_norm_agrees_with_transformers() -> None:
    x, weight = normal(5, 48), normal(48)
    norm = LlamaRMSNorm(48, eps=1e-5)
    norm.weight.data = torch.from_numpy(weight)
    expected = norm(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(reference.rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-6)


def test_rope_agrees_with_transformers() -> None:
    tokens, heads, dim = 6, 3, 20
    queries, angles = normal(tokens, heads, dim), normal(tokens, dim // 2)
    cos, sin = (torch.from_numpy(np.tile(f(angles), 2))[None] for f in (np.cos, np.sin))
    query = torch.from_numpy(queries).transpose(0, 1)[None]
    expected = apply_rotary_pos_emb(query, query, cos, sin)[0][0].transpose(0, 1)
    actual = reference.rope(queries, np.cos(angles), np.sin(angles))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_silu_mul_agrees_with_torch_also_where_exp_overflows() -> None:
    gate, up = np.array([-200, -1, 0, 1, 200], np.float32), normal(5)
    expected = torch.nn.functional.silu(torch.from_numpy(gate)) * torch.from_numpy(up)
    np.testing.assert_allclose(reference.silu_mul(gate, up), expected, rtol=1e-6)


def test_gelu_tanh_mul_agrees_with_torch() -> None:
    gate, up = np.array([-200, -3, -1, 0, 1, 200], np.float32), normal(6)
    gelu = torch.nn.functional.gelu(torch.from_numpy(gate), approximate="tanh")
    expected = gelu * torch.from_numpy(up)
    np.testing.assert_allclose(reference.gelu_tanh_mul(gate, up), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kv_words_hold_the_values_the_layout_says(dtype: str) -> None:
    kv = KvLayout(1, 2, head_dim=6, block_size=8, lanes=4, dtype=dtype, num_blocks=3)
    keys, values = make_cache(kv)
    new_keys, new_values = normal(1, 2, 6), normal(1, 2, 6)
    reference.write_kv(keys, values, new_keys, new_values, np.array([2 * 8 + 5], np.int32), kv)
    assert np.count_nonzero(keys) == 2 * 6 // kv.kr
    assert np.count_nonzero(values) == 2 * 6
    if dtype == "float32":
        assert keys[1, 2, 4, 5] == new_keys[0, 1, 4]
        assert values[1, 2, 5, 4] == new_values[0, 1, 4]
    else:
        low, high = bf16_from_float32(new_keys[0, 1, 4:6]).astype(np.uint32)
        assert keys[1, 2, 2, 5].view(np.uint32) == low | high << 16
        odd = bf16_from_float32(new_values[0, 1, 4:5]).astype(np.uint32)[0]
        assert values[1, 2, 2, 4].view(np.uint32) == odd << 16  # token 5 is the high half


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(1, 1, 2), (3, 1, 20), (4, 2, 24), (5, 5, 8)]
)
def test_paged_attention_agrees_with_torch(heads: int, kv_heads: int, dim: int, dtype: str) -> None:
    """Sequences of one token to more than two blocks, in scattered blocks, as prefill chunks."""
    kv = KvLayout(1, kv_heads, dim, block_size=8, lanes=4, dtype=dtype, num_blocks=16)
    keys, values = make_cache(kv)
    context_lens = np.array([1, 7, 8, 9, 19], np.int32)
    num_queries = np.array([1, 7, 3, 1, 10], np.int32)
    query_starts = np.concatenate(([0], np.cumsum(num_queries))).astype(np.int32)
    block_tables = RNG.permutation(16)[:15].reshape(5, 3).astype(np.int32)
    queries = normal(int(query_starts[-1]), heads, dim)
    expected = np.empty_like(queries)
    for seq, length in enumerate(context_lens):
        new_keys, new_values = normal(length, kv_heads, dim), normal(length, kv_heads, dim)
        at = np.arange(length)
        slots = (block_tables[seq][at // 8] * 8 + at % 8).astype(np.int32)
        reference.write_kv(keys, values, new_keys, new_values, slots, kv)
        rows = slice(query_starts[seq], query_starts[seq + 1])
        query, key, value = (
            torch.from_numpy(reference.round_to(a, kind)).transpose(0, 1)
            for a, kind in ((queries[rows], "float32"), (new_keys, dtype), (new_values, dtype))
        )
        mask = torch.ones(num_queries[seq], length, dtype=torch.bool)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(heads // kv_heads, 0),
            value.repeat_interleave(heads // kv_heads, 0),
            attn_mask=mask.tril(int(length - num_queries[seq])),
        )
        expected[rows] = attended.transpose(0, 1).numpy()
    actual = reference.paged_attention(
        queries, keys, values, query_starts, context_lens, block_tables, kv
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_tied_embedding_reads_the_same_rows_as_a_table(dtype: str) -> None:
    lm_head = PanelLayout(37, 10, WeightFormat(dtype), panel=16, lanes=4)
    table = normal(37, 10)
    rows = bf16_from_float32(table) if dtype == "bfloat16" else table
    words = np.zeros(lm_head.num_words, lm_head.word_dtype)
    packed = PackedMatrix(words)
    lm_head.pack_rows(rows, 0, packed)
    ids = np.array([36, 0, 16, 16], np.int32)
    expected = float32_from_bf16(rows)[ids] if dtype == "bfloat16" else table[ids]
    np.testing.assert_array_equal(reference.embedding(rows, ids), expected)
    np.testing.assert_array_equal(reference.embedding_from_panels(packed, ids, lm_head), expected)


def test_argmax_gives_the_lowest_id_of_a_tie() -> None:
    logits = np.array([[0, 3, 3, 1], [2, 2, 2, 2], [-np.inf, -np.inf, 0, 0]], np.float32)
    assert reference.argmax(logits).tolist() == [1, 0, 2]
