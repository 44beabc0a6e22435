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


@dataclass(frozen=True)
class GemmTile:
    """The schedule of one GEMM role.

    mr: rows of the register tile. kc: values of K per block, 0 for all of them. k_unroll: weight words per turn of
    the innermost loop. prefetch_bytes: distance of the software prefetch of weights, 0 for none.
    """

    mr: int
    kc: int = 0
    k_unroll: int = 1
    prefetch_bytes: int = 0
