"""A Llama checkpoint of the Hugging Face layout -> a GGUF file with the same values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from sandwich.checkpoint.safetensors import NUMPY_DTYPES, SafetensorsCheckpoint
from sandwich.checkpoint.source import StoredTensor

ARCHITECTURE = "llama"
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# How the text is cut before it is merged, by what is told apart in the tokenizer's file; llama.cpp
# knows these ways by name.
SMOLLM, GPT_2 = "smollm", "gpt-2"
FILE_TYPES = {
    None: gguf.LlamaFileType.MOSTLY_BF16,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
    gguf.GGMLQuantizationType.Q4_0: gguf.LlamaFileType.MOSTLY_Q4_0,
}


def write_gguf(folder: Path, path: Path, kind: gguf.GGMLQuantizationType | None = None) -> None:
    """Write the checkpoint in `folder` to `path`, a tensor at a time; vectors become float32, and
    matrices `kind` or what they are.
    """
    config = json.loads((folder / "config.json").read_text())
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    writer.add_file_type(FILE_TYPES[kind])
    _write_sizes(writer, config)
    _write_tokenizer(writer, folder, config)
    tensors = SafetensorsCheckpoint(folder).tensors
    for name, tensor in tensors.items():
        writer.add_tensor_info(gguf_name(name), *_stored_as(tensor, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in tensors.items():
        values = _values(name, tensor, config)
        if kind is not None and values.ndim == 2:
            values = gguf.quants.quantize(_as_float32(values, tensor.dtype), kind)
        writer.write_tensor_data(values)
    writer.close()
    part.replace(path)


def gguf_name(name: str) -> str:
    """The name in a GGUF file: `model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem in OTHER_NAMES:
        return f"{OTHER_NAMES[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest]}.{kind}"


def rotated(rows: npt.NDArray[Any], num_heads: int) -> npt.NDArray[Any]:
    """Rows of q or k in llama.cpp's order: both halves of a head, which are rotated together,
    alternate.
    """
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _stored_as(
    tensor: StoredTensor, kind: gguf.GGMLQuantizationType | None
) -> tuple[tuple[int, ...], np.dtype[Any], int, gguf.GGMLQuantizationType]:
    """Shape, type of the items, bytes and type of a tensor in the file."""
    shape, num_values = tensor.shape, int(np.prod(tensor.shape))
    if len(shape) == 1 or (kind is None and tensor.dtype == "F32"):
        return shape, np.dtype(np.float32), 4 * num_values, gguf.GGMLQuantizationType.F32
    if kind is None:
        item = NUMPY_DTYPES[tensor.dtype]
        return shape, item, item.itemsize * num_values, gguf.GGMLQuantizationType[tensor.dtype]
    values, nbytes = gguf.GGML_QUANT_SIZES[kind]
    row = gguf.quant_shape_to_byte_shape(shape, kind)
    return row, np.dtype(np.uint8), num_values // values * nbytes, kind


def _values(name: str, tensor: StoredTensor, config: dict[str, Any]) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = np.memmap(
        tensor.file, NUMPY_DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape
    )
    if "q_proj" in name:
        values = rotated(values, config["num_attention_heads"])
    elif "k_proj" in name:
        values = rotated(values, config["num_key_value_heads"])
    if len(tensor.shape) > 1:
        return np.ascontiguousarray(values)
    return _as_float32(values, tensor.dtype)


def _as_float32(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def _write_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    num_heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // num_heads
    rope = config.get("rope_parameters") or config
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(num_heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """The tokens; ids that the model has and the tokenizer has not are unused ones."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokens = [f"[PAD{i}]" for i in range(config["vocab_size"])]
    kinds = [gguf.TokenType.UNUSED] * len(tokens)
    for text, number in tokenizer["model"]["vocab"].items():
        tokens[number], kinds[number] = text, gguf.TokenType.NORMAL
    for token in tokenizer["added_tokens"]:
        kind = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
        tokens[token["id"]], kinds[token["id"]] = token["content"], kind
    merges = tokenizer["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(
        SMOLLM if '"Digits"' in json.dumps(tokenizer["pre_tokenizer"]) else GPT_2
    )
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(config.get("bos_token_id") or 0)
    eos = config.get("eos_token_id") or 0
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    writer.add_add_bos_token(False)
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())
