"""The Llama family: which tensors a checkpoint holds, what each is for, and how a token meets them.

    h = embed_tokens[token]
    for each layer:
        x = rms_norm(h, input_layernorm)
        q, k, v = q_proj x, k_proj x, v_proj x
        h = h + o_proj attention(rope(q), rope(k), v)
        x = rms_norm(h, post_attention_layernorm)
        h = h + down_proj (silu(gate_proj x) * up_proj x)
    logits = lm_head rms_norm(h, norm)

Source: LLaMA (arXiv 2302.13971), Llama 3 (arXiv 2407.21783).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from codegen.spec import ModelShape

STORED_FREQUENCIES: Final = ".rotary_emb.inv_freq"  # of the rotation, as old checkpoints hold them


@dataclass(frozen=True)
class CheckpointTensor:
    """One tensor of a checkpoint: its name there, shape (out, in) or (n,), and its role here."""

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int = 0  # 0 also outside the layers

    @property
    def num_columns(self) -> int:
        return self.shape[1] if len(self.shape) == 2 else 1


def checkpoint_tensors(shape: ModelShape) -> Iterator[CheckpointTensor]:
    """Every tensor the model needs, in the order a token meets them.

    Tied embeddings are one tensor, with the role of the LM head.
    """
    hidden = shape.hidden_size
    embedding_role = "lm_head" if shape.tied_embeddings else "embed_tokens"
    embedding_shape = (shape.vocab_size, hidden)
    yield CheckpointTensor("model.embed_tokens.weight", embedding_shape, embedding_role)
    for layer in range(shape.num_layers):
        yield from _layer_tensors(shape, layer)
    yield CheckpointTensor("model.norm.weight", (hidden,), "norm")
    if not shape.tied_embeddings:
        yield CheckpointTensor("lm_head.weight", embedding_shape, "lm_head")


def _layer_tensors(shape: ModelShape, layer: int) -> Iterator[CheckpointTensor]:
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    linears = (
        ("self_attn.q_proj", "q", (query, hidden), shape.qkv_bias),
        ("self_attn.k_proj", "k", (key, hidden), shape.qkv_bias),
        ("self_attn.v_proj", "v", (key, hidden), shape.qkv_bias),
        ("self_attn.o_proj", "o", (hidden, query), shape.o_bias),
        ("mlp.gate_proj", "gate", (intermediate, hidden), shape.mlp_bias),
        ("mlp.up_proj", "up", (intermediate, hidden), shape.mlp_bias),
        ("mlp.down_proj", "down", (hidden, intermediate), shape.mlp_bias),
    )
    norms = (
        ("input_layernorm", "input_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
    )
    prefix = f"model.layers.{layer}"
    for name, role in norms:
        yield CheckpointTensor(f"{prefix}.{name}.weight", (hidden,), role, layer)
    for name, role, size, has_bias in linears:
        yield CheckpointTensor(f"{prefix}.{name}.weight", size, role, layer)
        if has_bias:
            yield CheckpointTensor(f"{prefix}.{name}.bias", size[:1], f"{role}_bias", layer)


def is_redundant(name: str, shape: ModelShape) -> bool:
    """Whether a checkpoint may hold this tensor though the model computes or shares it.

    A tied LM head equals the embedding: `models/tied.py` has compared them.
    """
    is_shared = shape.tied_embeddings and name == "lm_head.weight"
    return is_shared or name.endswith(STORED_FREQUENCIES)
