"""The tiny models that are compared with transformers: of every family, in its own ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

MAX_MODEL_LEN = 128


@dataclass(frozen=True)
class Case:
    """A tiny model: what the config of its family is given, and how the checkpoint is written.

    is_slow: compiling it is left to the slow tests, as no kernel of its is new.
    """

    name: str
    config: dict[str, Any]
    family: str = "llama"  # model_type
    transformers_4: bool = False  # config.json as transformers 4 wrote it
    max_shard_size: str = "1GB"
    dtype: torch.dtype = torch.float32
    is_slow: bool = False


def sizes(hidden: int, heads: int, kv_heads: int, head_dim: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "num_hidden_layers": 2,
        "intermediate_size": 52,
        "vocab_size": 101,
        "max_position_embeddings": MAX_MODEL_LEN,
        "eos_token_id": [7, 9],
        **more,
    }


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 3.0,
    "original_max_position_embeddings": 32,
}
BIASES = {"attention_bias": True, "mlp_bias": True}

CASES = [
    Case("gqa-tied", sizes(64, 4, 2, 16, tie_word_embeddings=True)),
    Case("mha-untied-transformers4", sizes(64, 4, 4, 16, rms_norm_eps=1e-5), transformers_4=True),
    Case("3-heads-of-20", sizes(60, 3, 1, 20, intermediate_size=47)),
    Case("5-heads-of-24-wider-than-hidden", sizes(40, 5, 5, 24, vocab_size=64)),
    Case("4-heads-of-80", sizes(320, 4, 2, 80)),
    Case("6-heads-of-20-in-pairs-tied", sizes(66, 6, 3, 20, tie_word_embeddings=True)),
    Case("biases", sizes(48, 3, 3, 16, **BIASES)),
    Case("biases-sharded", sizes(60, 3, 1, 24, vocab_size=97, **BIASES), max_shard_size="30KB"),
    Case("llama3-rope", sizes(64, 4, 2, 16, rope_parameters=LLAMA3_ROPE)),
    Case(
        "llama3-rope-transformers4",
        sizes(64, 4, 2, 24, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
        transformers_4=True,
        max_shard_size="40KB",
    ),
    Case("linear-rope", sizes(40, 5, 1, 8, rope_parameters=LINEAR_ROPE), transformers_4=True),
    Case("stored-as-bf16", sizes(64, 4, 2, 16), dtype=torch.bfloat16),
    Case("stored-as-f16-tied", sizes(64, 4, 2, 16, tie_word_embeddings=True), dtype=torch.float16),
    Case("mistral", sizes(64, 4, 2, 16, sliding_window=40), "mistral"),
    Case("mistral-narrow-window", sizes(60, 3, 1, 20, sliding_window=7), "mistral"),
    Case("mixtral", sizes(60, 3, 1, 20, sliding_window=9, num_local_experts=4), "mixtral"),
    Case(
        "qwen2-windows-in-turn",
        sizes(
            *(64, 4, 2, 16),
            num_hidden_layers=5,
            use_sliding_window=True,
            sliding_window=33,
            layer_types=["sliding_attention", "full_attention"] * 2 + ["full_attention"],
        ),
        "qwen2",
    ),
    Case(
        "gemma2",
        sizes(
            *(60, 3, 1, 20),
            num_hidden_layers=3,
            sliding_window=7,
            query_pre_attn_scalar=11,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
        ),
        "gemma2",
    ),
    Case(
        "gemma3",
        sizes(
            *(64, 4, 2, 16),
            num_hidden_layers=7,
            sliding_window=33,
            rope_parameters={
                "full_attention": LINEAR_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        ),
        "gemma3_text",
    ),
    Case("phi3", sizes(64, 4, 2, 16, sliding_window=40, pad_token_id=0), "phi3", is_slow=True),
    Case(
        "phi4-partial-longrope",
        sizes(
            *(72, 3, 1, 24),
            pad_token_id=0,
            original_max_position_embeddings=MAX_MODEL_LEN,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.05, 1.1, 1.3, 1.5, 1.8, 2.0, 2.2, 3.0],
                "long_factor": [1.1, 1.2, 1.4, 2.0, 4.0, 8.0, 9.0, 12.0, 20.0],
                "factor": 4.0,
                "original_max_position_embeddings": MAX_MODEL_LEN,
            },
        ),
        "phi3",
    ),
    Case(
        "granite",
        sizes(
            *(60, 3, 1, 20),
            embedding_multiplier=3.0,
            residual_multiplier=0.22,
            attention_multiplier=0.07,
            logits_scaling=0.75,
            rms_norm_eps=1e-3,
            **BIASES,
        ),
        "granite",
        is_slow=True,
    ),
    Case(
        "smollm3", sizes(60, 3, 1, 20, num_hidden_layers=5, pad_token_id=0), "smollm3", is_slow=True
    ),
    Case("glm", sizes(60, 3, 1, 20, intermediate_size=47, pad_token_id=0), "glm", is_slow=True),
    Case("glm4", sizes(64, 4, 2, 16, attention_bias=True, pad_token_id=0), "glm4"),
    Case(
        "exaone4",
        sizes(
            *(60, 3, 1, 20),
            num_hidden_layers=5,
            sliding_window=33,
            sliding_window_pattern=4,
            rope_parameters=LLAMA3_ROPE,
        ),
        "exaone4",
    ),
    Case(
        "exaone4-full",
        sizes(64, 4, 2, 16, sliding_window=None, layer_types=["full_attention"] * 2),
        "exaone4",
        is_slow=True,
    ),
    Case(
        "olmo3-yarn",
        sizes(
            *(60, 3, 1, 20),
            num_hidden_layers=5,
            sliding_window=7,
            rope_parameters={
                "full_attention": YARN_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        "olmo3",
        is_slow=True,
    ),
    Case(
        "ministral",
        sizes(
            *(64, 4, 2, 16),
            num_hidden_layers=3,
            sliding_window=33,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        "ministral",
        is_slow=True,
    ),
    Case("qwen3-yarn", sizes(64, 4, 2, 16, rope_parameters=YARN_ROPE), "qwen3", is_slow=True),
    Case("olmo2", sizes(60, 3, 1, 20), "olmo2"),
    Case("olmoe", sizes(60, 3, 1, 20, num_experts=5, num_experts_per_tok=2), "olmoe"),
    Case("qwen2", sizes(64, 4, 2, 16, rms_norm_eps=1e-6), "qwen2"),
    Case("qwen3", sizes(60, 3, 1, 20, rms_norm_eps=1e-6), "qwen3"),
    Case(
        "qwen3-moe",
        sizes(
            *(64, 4, 2, 16),
            num_experts=17,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        "qwen3_moe",
    ),
    Case("qwen3-wide-heads-tied", sizes(40, 4, 2, 32, tie_word_embeddings=True), "qwen3"),
]
