"""A published shape filled with random weights, written as a checkpoint that every engine reads."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from codegen.layout.arrays import bf16_from_float32
from sandwich.models.presets import preset
from sandwich.models.tensors import CheckpointTensor, checkpoint_tensors

BLOCK_VALUES = 1 << 24
MAX_MODEL_LEN = 8192
DONE = "complete"  # written last


def random_checkpoint(name: str, tokenizer: Path, cache_dir: Path) -> Path:
    """The folder of the shape `name` with bf16 weights and that tokenizer, made at first use.

    Its positions are plain ones, whatever the published model stretches, so that they are the same
    in every engine's reading.
    """
    folder = cache_dir / "bench" / "models" / "random" / name
    if (folder / DONE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model = preset(name)
    (folder / "config.json").write_text(json.dumps(_config(name), indent=2))
    (folder / "generation_config.json").write_text("{}")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tokenizer / file).exists():
            shutil.copyfile(tokenizer / file, folder / file)
    _write_weights(
        folder / "model.safetensors", list(checkpoint_tensors(model.shape(1), model.names))
    )
    (folder / DONE).touch()
    return folder


def _config(name: str) -> dict[str, Any]:
    model = preset(name)
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
        "max_position_embeddings": MAX_MODEL_LEN,
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tie_word_embeddings,
        "rope_theta": model.rope.theta,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _write_weights(file: Path, tensors: list[CheckpointTensor]) -> None:
    """The safetensors layout, a piece at a time: length of the header, header, data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        end = at + 2 * int(np.prod(tensor.shape))
        header[tensor.name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    values = np.random.default_rng(0).standard_normal(BLOCK_VALUES, np.float32) * np.float32(0.02)
    block = bf16_from_float32(values)
    one = bf16_from_float32(np.ones(1, np.float32))
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for number, tensor in enumerate(tensors):
            size = int(np.prod(tensor.shape))
            if tensor.is_norm:
                out.write(np.repeat(one, size).tobytes())
                continue
            for piece in _pieces(size, 7919 * number % (BLOCK_VALUES // 2)):
                out.write(block[piece].tobytes())


def _pieces(size: int, start: int) -> Iterator[slice]:
    """Slices of the block that have `size` values together, the first from `start` on."""
    while size > 0:
        count = min(size, BLOCK_VALUES - start)
        yield slice(start, start + count)
        size, start = size - count, 0
