"""The values that say what to generate: phases, model shapes, tiles. Nothing here knows TVM."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
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

    mr: rows of the register tile. kc: values of K per block, 0 for all of them. k_unroll: weight
    words per turn of the innermost loop. prefetch_bytes: distance of the software prefetch of
    weights, 0 for none.
    """

    mr: int
    kc: int = 0
    k_unroll: int = 1
    prefetch_bytes: int = 0


# The operators of a step in order, those of a layer in the middle.
OPERATORS = (
    "embed",
    "input_norm",
    "qkv",
    "rope_and_cache",
    "attention",
    "o",
    "post_attention_norm",
    "gate_up",
    "down",
    "norm",
    "lm_head",
    "argmax",
)
GEMM_ROLES = ("qkv", "o", "gate_up", "down", "lm_head")


@dataclass(frozen=True)
class StepLimits:
    """The largest step a program takes; every buffer of a program is this large.

    `num_blocks` of `block_size` tokens are in the KV cache, at most `max_blocks_per_seq` of them
    one sequence's.
    """

    max_num_tokens: int
    max_num_seqs: int
    max_num_logits: int
    max_blocks_per_seq: int
    num_blocks: int
    block_size: int


@dataclass(frozen=True)
class ProgramSpec:
    """Everything a phase program depends on; its repr is the program's key in the cache.

    panel: columns of a weight panel. tiles: (role, tile) for every role of GEMM_ROLES. query_tile:
    tokens of one sequence that share a pass over its keys and values.
    """

    phase: Phase
    shape: ModelShape
    isa: str
    dtype: str
    kv_dtype: str
    panel: int
    limits: StepLimits
    num_cores: int
    tiles: tuple[tuple[str, GemmTile], ...]
    query_tile: int
    has_timers: bool = False

    def tile(self, role: str) -> GemmTile:
        """The tile of `role`."""
        return dict(self.tiles)[role]
