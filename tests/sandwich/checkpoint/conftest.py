"""Tiny Llamas in GGUF, written with the `gguf` package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quant_shape_to_byte_shape

from tests.sandwich.conftest import CHAT_TEMPLATE, byte_level

HIDDEN, HEADS, KV_HEADS, DIM, INTERMEDIATE, LAYERS = 256, 4, 2, 64, 512, 2
Array = np.ndarray
Stored = tuple[Array, GGMLQuantizationType]  # rows of bytes, and what they mean
Tensors = dict[str, Array | Stored]


def tokenizer_metadata(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """What a converter writes of a byte-level tokenizer."""
    state = json.loads(backend.to_str())
    added = {token["id"]: token for token in state["added_tokens"]}
    by_id = {index: token for token, index in state["model"]["vocab"].items()}
    by_id |= {index: token["content"] for index, token in added.items()}
    kinds = [
        (3 if added[index]["special"] else 4) if index in added else 1
        for index in range(len(by_id))
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [by_id[index] for index in range(len(by_id))],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Of a whole tiny Llama; a change to None leaves a key out. Two underscores are a dot."""
    sizes = {
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INTERMEDIATE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": DIM,
    }
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    merged = sizes | tokenizer_metadata(byte_level()) | changed
    return {key: value for key, value in merged.items() if value is not None}


def llama_shapes(vocab_size: int, is_tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Name in the file -> shape."""
    key = KV_HEADS * DIM
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (key, HIDDEN),
        "attn_v": (key, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INTERMEDIATE, HIDDEN),
        "ffn_up": (INTERMEDIATE, HIDDEN),
        "ffn_down": (HIDDEN, INTERMEDIATE),
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, HIDDEN)}
    for index in range(LAYERS):
        shapes |= {f"blk.{index}.{name}.weight": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (HIDDEN,)
    return shapes if is_tied else shapes | {"output.weight": (vocab_size, HIDDEN)}


def random_tensors(vocab_size: int, seed: int = 0, is_tied: bool = True) -> dict[str, Array]:
    """float32 values of a tiny Llama; norms near 1."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.05 * rng.standard_normal(shape) + ("norm" in name)).astype(np.float32)
        for name, shape in llama_shapes(vocab_size, is_tied).items()
    }


def random_blocks(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Stored:
    """Blocks of that type with random codes and scales that are finite."""
    dtype = GGMLQuantizationType[kind]
    raw = rng.integers(0, 256, quant_shape_to_byte_shape(shape, dtype), dtype=np.uint8)
    with np.errstate(all="ignore"):
        is_wrong = ~np.isfinite(dequantize(raw, dtype)).all(axis=1)
    raw[is_wrong] &= 0x3B  # where an exponent of a scale is full
    return raw, dtype


def write_gguf(
    file: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Array | Stored],
    split: int = 0,
) -> Path:
    """`split`: tensors of a file, 0 for one file. Returns what a user would name."""
    arch = metadata.get("general.architecture", "llama")
    writer = GGUFWriter(file, arch, split_max_tensors=split, small_first_shard=False)
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, _value_type(value))
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[0], raw_dtype=tensor[1])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file if file.exists() else min(file.parent.glob("*-00001-of-*.gguf"))


def _value_type(value: Any) -> GGUFValueType:
    for kind, value_type in (
        (bool, GGUFValueType.BOOL),
        (int, GGUFValueType.UINT32),
        (float, GGUFValueType.FLOAT32),
    ):
        if isinstance(value, kind):
            return value_type
    return GGUFValueType.STRING


@pytest.fixture(scope="session")
def vocab_size() -> int:
    """Of the tokenizer in `llama_metadata`."""
    return byte_level().get_vocab_size()
