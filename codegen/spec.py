"""The values that say what to generate: phases, model shapes, tiles. Nothing here knows TVM."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(str, Enum):
    """The two phases of a forward step; each has a plan and a program of its own."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class ModelShape:
    """What a Llama-family model computes: sizes and switches, no weights, no names."""

    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied_embeddings: bool
    max_model_len: int

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads
