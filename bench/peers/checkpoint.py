"""Checkpoints that every engine reads: bf16 safetensors in a folder of the Hugging Face layout.

A published shape is filled with random weights; a model that is a single file is written out once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import bf16_from_float32
from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.source import Checkpoint
from sandwich.checkpoint.tokenizer_files import TokenizerFiles
from sandwich.errors import ConfigError
from sandwich.models.config import ModelConfig
from sandwich.models.presets import preset
from sandwich.models.tensors import CheckpointTensor, checkpoint_tensors

BLOCK_VALUES = 1 << 24
CHUNK_VALUES = 1 << 22
MAX_MODEL_LEN = 8192
DONE = "complete"  # written last
Bits = npt.NDArray[np.uint16]  # of bf16 values
Pieces = Callable[[CheckpointTensor], Iterator[Bits]]


def random_checkpoint(name: str, tokenizer: TokenizerFiles, cache_dir: Path) -> Path:
    """The folder of the shape `name` with random weights and that tokenizer, made at first use.

    Its positions are plain ones, whatever the published model stretches, so that they are the same
    in every engine's reading.
    """
    folder = cache_dir / "bench" / "models" / "random" / name
    values = np.random.default_rng(0).standard_normal(BLOCK_VALUES, np.float32) * np.float32(0.02)
    block = bf16_from_float32(values)

    def pieces(tensor: CheckpointTensor) -> Iterator[Bits]:
        size = int(np.prod(tensor.shape))
        if tensor.is_norm:
            yield bf16_from_float32(np.ones(size, np.float32))
            return
        start = 7919 * ((tensor.layer or 0) + len(tensor.name)) % (BLOCK_VALUES // 2)
        while size > 0:
            piece = block[start : start + size]
            yield piece
            size, start = size - len(piece), 0

    return _made(folder, preset(name), MAX_MODEL_LEN, tokenizer, pieces)


def as_folder(path: Path, cache_dir: Path) -> Path:
    """`path` itself if it is a folder; else a folder with the model of that file, made once.

    ConfigError for a model whose positions are stretched, which is not written out.
    """
    if path.is_dir():
        return path
    source = open_source(path)
    model = ModelConfig.from_source(source)
    if model.rope.rope_type != "default":
        raise ConfigError(f"{path}: its positions are stretched; give the model as a folder")
    folder = cache_dir / "bench" / "models" / "files" / path.stem
    with source.checkpoint() as checkpoint:

        def pieces(tensor: CheckpointTensor) -> Iterator[Bits]:
            return _stored(checkpoint, tensor)

        return _made(folder, model, model.max_position_embeddings, source.tokenizer(), pieces)


def _stored(checkpoint: Checkpoint, tensor: CheckpointTensor) -> Iterator[Bits]:
    rows = max(1, CHUNK_VALUES // tensor.num_columns)
    buffer = np.empty(4 * rows * tensor.num_columns, np.uint8)
    for start in range(0, tensor.shape[0], rows):
        stop = min(start + rows, tensor.shape[0])
        values = checkpoint.read_rows(tensor.name, start, stop, buffer)
        is_bf16 = values.dtype == np.uint16
        yield values if is_bf16 else bf16_from_float32(values.astype(np.float32))


def _made(
    folder: Path, model: ModelConfig, length: int, tokenizer: TokenizerFiles, pieces: Pieces
) -> Path:
    if (folder / DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_config(model, length), indent=2))
    (folder / "generation_config.json").write_text("{}")
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    named: dict[str, Any] = {**tokenizer.special_tokens}
    named |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, indent=2))
    if template := tokenizer.chat_templates.get("default"):
        (folder / "chat_template.jinja").write_text(template)
    tensors = list(checkpoint_tensors(model.shape(1), model.names))
    _write_weights(folder / "model.safetensors", tensors, pieces)
    (folder / DONE).touch()
    return folder


def _config(model: ModelConfig, length: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": model.switches.qkv_bias,
        "mlp_bias": model.switches.mlp_bias,
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": length,
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tie_word_embeddings,
        "rope_theta": model.rope.theta,
        "dtype": "bfloat16",
        "bos_token_id": model.bos_token_id or 0,
        "eos_token_id": list(model.eos_token_ids) or 0,
    }


def _write_weights(file: Path, tensors: list[CheckpointTensor], pieces: Pieces) -> None:
    """The safetensors layout, a piece at a time: length of the header, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + 2 * int(np.prod(tensor.shape))
        offsets = {"data_offsets": [at, end]}
        header[tensor.name] = {"dtype": "BF16", "shape": list(tensor.shape), **offsets}
        at = end
    text = json.dumps(header).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in pieces(tensor):
                out.write(piece.tobytes())
