"""Tensors of GGUF files: every type, any rows, Hugging Face names and order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from codegen.layout.arrays import bf16_from_float32, widen
from sandwich.checkpoint.gguf.checkpoint import GgufCheckpoint
from sandwich.checkpoint.gguf.source import GgufModel
from tests.sandwich.checkpoint.conftest import (
    DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    Tensors,
    llama_metadata,
    random_blocks,
    random_tensors,
    write_gguf,
)

QUANTIZED = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "IQ4_XS", "MXFP4"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
UP = "model.layers.0.mlp.up_proj.weight"
NO_BUFFER = np.empty(0, np.uint8)


def read(
    checkpoint: GgufCheckpoint, name: str, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """Rows of a tensor, read into a buffer as large as loading has."""
    shape = checkpoint.tensors[name].shape
    end = shape[0] if stop is None else stop
    values = (end - start) * int(np.prod(shape[1:]))
    return widen(checkpoint.read_rows(name, start, end, np.empty(4 * values, np.uint8))).copy()


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """q or k as llama.cpp's converter reorders its rows."""
    halves = weight.reshape(heads, 2, DIM // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_values_are_those_of_the_gguf_package(tmp_path: Path, vocab_size: int, kind: str) -> None:
    tensors = random_tensors(vocab_size)
    raw, dtype = random_blocks(np.random.default_rng(1), (512, HIDDEN), kind)
    stored: Tensors = {**tensors, "blk.0.ffn_up.weight": (raw, dtype)}
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(), stored)
    expected = dequantize(raw, dtype)
    assert np.isfinite(expected).all()
    with GgufModel(file).checkpoint() as checkpoint:
        assert checkpoint.tensors[UP].dtype == kind
        for start, stop in ((0, 512), (0, 1), (511, 512), (63, 130)):
            np.testing.assert_array_equal(read(checkpoint, UP, start, stop), expected[start:stop])
        rows = checkpoint.read_rows(UP, 3, 5, NO_BUFFER)
        np.testing.assert_array_equal(rows, expected[3:5])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_unquantised_values_are_read_as_they_are(
    tmp_path: Path, vocab_size: int, kind: str
) -> None:
    tensors = random_tensors(vocab_size)
    values = tensors["blk.0.ffn_up.weight"]
    bits: np.ndarray = values
    if kind == "F16":
        bits = values.astype(np.float16)
    if kind == "BF16":
        bits = bf16_from_float32(values)
    raw = bits.view(np.uint8).reshape(len(bits), -1)
    stored: Tensors = {**tensors, "blk.0.ffn_up.weight": (raw, GGMLQuantizationType[kind])}
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(), stored)
    with GgufModel(file).checkpoint() as checkpoint:
        np.testing.assert_array_equal(read(checkpoint, UP, 7, 9), widen(bits)[7:9])
        norm = read(checkpoint, "model.norm.weight")
        np.testing.assert_array_equal(norm, tensors["output_norm.weight"])


@pytest.mark.parametrize("rows", [(0, None), (0, 1), (1, 64), (63, 65), (100, 128)])
def test_rows_of_q_and_k_come_in_the_order_of_hugging_face(
    tmp_path: Path, vocab_size: int, rows: tuple[int, int | None]
) -> None:
    tensors = random_tensors(vocab_size)
    q, k = tensors["blk.1.attn_q.weight"], tensors["blk.1.attn_k.weight"]
    bias = np.arange(HEADS * DIM, dtype=np.float32)
    stored = {
        **tensors,
        "blk.1.attn_q.weight": paired(q, HEADS),
        "blk.1.attn_k.weight": paired(k, KV_HEADS),
        "blk.1.attn_q.bias": paired(bias[:, None], HEADS).reshape(-1),
    }
    file = write_gguf(tmp_path / "m.gguf", llama_metadata(), stored)
    start, stop = rows
    prefix = "model.layers.1.self_attn"
    with GgufModel(file).checkpoint() as checkpoint:
        for name, values in (("q_proj.weight", q), ("k_proj.weight", k), ("q_proj.bias", bias)):
            found = read(checkpoint, f"{prefix}.{name}", start, stop)
            np.testing.assert_array_equal(found, values[start:stop], err_msg=name)


def test_q_of_other_architectures_is_not_reordered(tmp_path: Path, vocab_size: int) -> None:
    tensors = random_tensors(vocab_size)
    metadata = {key.replace("llama.", "qwen2."): v for key, v in llama_metadata().items()}
    file = write_gguf(tmp_path / "m.gguf", metadata | {"general.architecture": "qwen2"}, tensors)
    with GgufModel(file).checkpoint() as checkpoint:
        found = read(checkpoint, "model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(found, tensors["blk.0.attn_q.weight"])


def test_names_are_those_of_hugging_face_and_strange_ones_stay(
    tmp_path: Path, vocab_size: int
) -> None:
    tensors = random_tensors(vocab_size, is_tied=False)
    strange = {
        name: np.ones(32, np.float32)
        for name in ("blk.0.attn_sinks.weight", "v.blk.0.ln1.weight", "rope_freqs.weight")
    }
    checkpoint = GgufModel(
        write_gguf(tmp_path / "m.gguf", llama_metadata(), {**tensors, **strange})
    ).checkpoint()
    layer = (
        *("input_layernorm", "post_attention_layernorm"),
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    )
    assert checkpoint.tensors.keys() == {
        *("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"),
        *(f"model.layers.{i}.{name}.weight" for i in range(LAYERS) for name in layer),
        *("blk.0.attn_sinks.weight", "v.blk.0.ln1.weight"),
    }
