"""Packed layouts: every value is where the documented order says, and padding is zero."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.layout.arrays import bf16_from_float32, float32_from_bf16, round_up, widen
from codegen.layout.kv_format import KvFormat
from codegen.layout.model import KvLayout, ModelLayout
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.spec import ModelShape, WeightFormat
from platforms.memory import Arena

RAGGED = [(1, 1), (3, 5), (8, 8), (31, 17), (32, 16), (33, 16), (64, 64), (95, 33), (97, 129)]


def make_shape(**changes: object) -> ModelShape:
    values: dict[str, object] = {
        "num_layers": 2,
        "hidden_size": 60,
        "num_heads": 3,
        "num_kv_heads": 1,
        "head_dim": 20,
        "intermediate_size": 52,
        "vocab_size": 101,
        "rms_norm_eps": 1e-5,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "tied_embeddings": False,
        "max_model_len": 64,
    }
    return ModelShape(**(values | changes))  # type: ignore[arg-type]


def random_rows(n: int, k: int, dtype: str, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    return bf16_from_float32(rows) if dtype == "bfloat16" else rows


def value_at(layout: PanelLayout, words: np.ndarray, row: int, col: int) -> float:
    """Where the contract says the value is, one index at a time."""
    panel, inside = divmod(row, layout.panel)
    width = min(layout.panel, layout.n_padded - panel * layout.panel)
    start = panel * layout.panel * layout.k_words
    word = words[start + (col // layout.kr) * width + inside]
    if layout.kr == 1:
        return float(word)
    half = (int(word) >> (16 * (col % 2))) & 0xFFFF
    return float(float32_from_bf16(np.array([half], np.uint16))[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("n", "k"), RAGGED)
def test_rows_are_packed_where_the_layout_says_and_come_back(n: int, k: int, dtype: str) -> None:
    layout = PanelLayout(n, k, WeightFormat(dtype), panel=32, lanes=8)
    rows = random_rows(n, k, dtype)
    words = np.zeros(layout.num_words, layout.word_dtype)
    layout.pack_rows(rows, 0, PackedMatrix(words))
    truth = widen(rows)
    for row, col in {(0, 0), (n - 1, k - 1), (n // 2, k // 2), (n - 1, 0), (0, k - 1)}:
        assert value_at(layout, words, row, col) == truth[row, col]
    np.testing.assert_array_equal(layout.unpack(PackedMatrix(words)), truth)
    ids = [n - 1, 0, n // 2]
    np.testing.assert_array_equal(layout.read_rows(PackedMatrix(words), ids), truth[ids])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", [1, 7, 32, 33, 96])
def test_packing_in_pieces_equals_packing_at_once(step: int, dtype: str) -> None:
    layout = PanelLayout(90, 13, WeightFormat(dtype), panel=32, lanes=8)
    rows = random_rows(90, 13, dtype)
    whole, pieces = (np.zeros(layout.num_words, layout.word_dtype) for _ in range(2))
    layout.pack_rows(rows, 0, PackedMatrix(whole))
    for start in range(0, 90, step):
        layout.pack_rows(rows[start : start + step], start, PackedMatrix(pieces))
    np.testing.assert_array_equal(pieces, whole)


def test_padding_rows_and_columns_stay_zero() -> None:
    layout = PanelLayout(33, 3, WeightFormat("bfloat16"), panel=32, lanes=16)
    words = np.zeros(layout.num_words, np.int32)
    layout.pack_rows(random_rows(33, 3, "bfloat16"), 0, PackedMatrix(words))
    last = layout.panel_words(words, 1)  # (2, 16): row 32 is real, 33..47 are padding
    assert layout.n_padded == 48
    assert layout.num_panels == 2
    assert last.shape == (2, 16)
    assert not last[:, 1:].any()
    assert last[1, 0] >> 16 == 0  # k = 3 does not exist


def test_rows_need_not_be_contiguous() -> None:
    layout = PanelLayout(20, 6, WeightFormat("bfloat16"), panel=16, lanes=4)
    rows = random_rows(40, 12, "bfloat16")[::2, ::2]
    words = np.zeros(layout.num_words, np.int32)
    layout.pack_rows(rows, 0, PackedMatrix(words))
    np.testing.assert_array_equal(layout.unpack(PackedMatrix(words)), widen(rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("intermediate", [1, 8, 16, 17, 24, 52, 64, 65])
def test_gate_and_up_share_panels_in_halves(intermediate: int, dtype: str) -> None:
    layout = ModelLayout.build(make_shape(intermediate_size=intermediate), dtype, lanes=8, panel=32)
    gate = random_rows(intermediate, 60, dtype, seed=1)
    up = random_rows(intermediate, 60, dtype, seed=2)
    matrix = layout.matrices["gate_up"]
    words = np.zeros(matrix.panels.num_words, matrix.panels.word_dtype)
    for start in range(0, intermediate, 23):
        matrix.pack("up", up[start : start + 23], start, PackedMatrix(words))
        matrix.pack("gate", gate[start : start + 23], start, PackedMatrix(words))
    expected = np.zeros((matrix.panels.n, 60), np.float32)
    wide_gate, wide_up = np.zeros((2, round_up(intermediate, 8), 60), np.float32)
    wide_gate[:intermediate], wide_up[:intermediate] = widen(gate), widen(up)
    at = 0
    for first in range(0, round_up(intermediate, 8), 16):
        for wide in (wide_gate, wide_up):
            part = wide[first : first + 16]
            expected[at : at + len(part)] = part
            at += len(part)
    unpacked = matrix.panels.unpack(PackedMatrix(words))
    np.testing.assert_array_equal(unpacked, expected)
    np.testing.assert_array_equal(unpacked[matrix.columns("gate")], widen(gate))
    np.testing.assert_array_equal(unpacked[matrix.columns("up")], widen(up))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head_dim", [20, 24, 32])
def test_heads_of_o_are_padded_each_to_full_vectors(head_dim: int, dtype: str) -> None:
    layout = ModelLayout.build(make_shape(head_dim=head_dim), dtype, lanes=16, panel=32)
    rows = random_rows(60, 3 * head_dim, dtype)
    matrix = layout.matrices["o"]
    words = np.zeros(matrix.panels.num_words, matrix.panels.word_dtype)
    matrix.pack("o", rows[:33], 0, PackedMatrix(words))
    matrix.pack("o", rows[33:], 33, PackedMatrix(words))
    wide = matrix.panels.unpack(PackedMatrix(words)).reshape(60, 3, 32)
    np.testing.assert_array_equal(wide[:, :, :head_dim].reshape(60, -1), widen(rows))
    assert not wide[:, :, head_dim:].any()


def test_tensor_specs_name_every_tensor_and_their_bytes_add_up() -> None:
    shape = make_shape(qkv_bias=True, mlp_bias=True)
    layout = ModelLayout.build(shape, "bfloat16", lanes=16, panel=64)
    specs = layout.tensor_specs()
    assert set(specs) == {
        "embed_tokens", "qkv", "qkv_bias", "o", "gate_up", "gate_up_bias", "down", "down_bias",
        "input_norm", "post_attention_norm", "norm", "lm_head", "rope_cos", "rope_sin",
    }  # fmt: skip
    assert specs["embed_tokens"].shape == (101, 60)
    assert specs["embed_tokens"].dtype == np.uint16
    assert specs["qkv"].shape == (2, 112 * 30)
    assert specs["qkv"].dtype == np.int32
    assert specs["qkv_bias"].shape == (2, 112)
    assert specs["o"].shape == (2, 64 * 48)
    assert specs["gate_up"].shape == (2, 128 * 30)
    assert specs["down"].shape == (2, 64 * 26)
    assert specs["norm"].shape == (64,)
    assert specs["norm"].dtype == np.float32
    assert specs["lm_head"].shape == (112 * 30,)
    assert specs["rope_cos"].shape == (64, 10)


def test_an_arena_of_weight_bytes_holds_every_tensor() -> None:
    layout = ModelLayout.build(make_shape(qkv_bias=True, o_bias=True), "float32", lanes=4, panel=8)
    arena = Arena(layout.weight_bytes, "weights")
    for spec in layout.tensor_specs().values():
        assert arena.array(spec.shape, spec.dtype).shape == spec.shape
    assert arena.nbytes - arena.nbytes_used < 64


def test_a_tied_model_has_no_separate_embedding() -> None:
    layout = ModelLayout.build(make_shape(tied_embeddings=True), "float32", lanes=4, panel=16)
    assert "embed_tokens" not in layout.tensor_specs()
    assert layout.tensor_specs()["lm_head"].dtype == np.float32


@pytest.mark.parametrize(("dtype", "word"), [("float32", 1), ("bfloat16", 2), ("int8", 2)])
def test_kv_blocks_have_the_documented_shape_and_size(dtype: str, word: int) -> None:
    kv = KvLayout(2, 3, head_dim=20, block_size=32, lanes=16, dtype=dtype, num_blocks=5)
    assert kv.keys.shape == (2, 3, 5, 20 // word, 32)
    assert kv.values.shape == (2, 3, 5, 32 // word, 32)
    arrays = kv.tensor_specs()
    assert kv.bytes_per_block * 5 == sum(spec.nbytes for spec in arrays.values())
    scales = [spec.shape for name, spec in arrays.items() if name.endswith("scales")]
    assert scales == [(2, 3, 5, 32)] * (2 if dtype == "int8" else 0)
    per_token = kv.bytes_per_block / 32
    assert per_token == 2 * 3 * (kv.format.nbytes(20) + kv.format.nbytes(32))


def test_a_type_of_the_cache_that_is_not_made_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int4.*one of"):
        KvFormat("int4")


def test_bf16_rounds_to_nearest_even_and_keeps_nan_and_infinity() -> None:
    expected = {
        0x3F800000: 0x3F80,
        0x3F808000: 0x3F80,  # a tie: down to even
        0x3F818000: 0x3F82,  # a tie: up to even
        0x3F808001: 0x3F81,
        0x7F7FFFFF: 0x7F80,  # the largest float32 rounds to infinity
        0x7F800000: 0x7F80,
        0xFF800000: 0xFF80,
        0x7FFFFFFF: 0x7FFF,
        0x7F800001: 0x7FC0,  # a NaN whose payload would be cut off
    }
    floats = np.array(list(expected), np.uint32).view(np.float32)
    np.testing.assert_array_equal(bf16_from_float32(floats), list(expected.values()))


def test_bf16_survives_the_round_trip_bit_for_bit() -> None:
    halves = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)
    back = bf16_from_float32(float32_from_bf16(halves))
    is_nan = np.isnan(float32_from_bf16(halves))
    np.testing.assert_array_equal(back[~is_nan], halves[~is_nan])
    assert np.isnan(float32_from_bf16(back[is_nan])).all()
