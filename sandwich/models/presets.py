"""Published model shapes by name, to measure speed without a checkpoint (`--random NAME`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from codegen.spec import Experts, HeadNorm, Traits
from sandwich.errors import ModelError
from sandwich.models import olmoe
from sandwich.models.config import ModelConfig
from sandwich.models.family import Switches
from sandwich.models.rope import RopeConfig

_LLAMA_3_2_1B: Final = ModelConfig(
    name="llama-3.2-1b",
    num_layers=16,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=128256,
    max_position_embeddings=131072,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    rope=RopeConfig(500000.0, "llama3", factor=32.0),
    dtype="bfloat16",
    bos_token_id=128000,
    eos_token_ids=(128001, 128008, 128009),
)
_LLAMA_3_2_3B: Final = replace(
    _LLAMA_3_2_1B,
    name="llama-3.2-3b",
    num_layers=28,
    hidden_size=3072,
    num_heads=24,
    head_dim=128,
)
_LLAMA_3_1_8B: Final = replace(
    _LLAMA_3_2_1B,
    name="llama-3.1-8b",
    num_layers=32,
    hidden_size=4096,
    head_dim=128,
    intermediate_size=14336,
    tie_word_embeddings=False,
    rope=RopeConfig(500000.0, "llama3", factor=8.0),
)
_OLMOE_1B_7B: Final = ModelConfig(
    name="olmoe-1b-7b",
    num_layers=16,
    hidden_size=2048,
    num_heads=16,
    num_kv_heads=16,
    head_dim=128,
    intermediate_size=1024,
    vocab_size=50304,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    switches=Switches(
        traits=Traits(
            head_norm=HeadNorm.ROW,
            experts=Experts(count=64, per_token=8, size=1024, is_normalised=False),
        )
    ),
    names=olmoe.NAMES,
    dtype="bfloat16",
    eos_token_ids=(50279,),
)
_SMOLLM_135M: Final = ModelConfig(
    name="smollm-135m",
    num_layers=30,
    hidden_size=576,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    vocab_size=49152,
    max_position_embeddings=2048,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    dtype="bfloat16",
    bos_token_id=0,
    eos_token_ids=(0,),
)
_TINY: Final = ModelConfig(
    name="tiny",
    num_layers=2,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=160,
    vocab_size=512,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    dtype="bfloat16",
    bos_token_id=0,
    eos_token_ids=(1,),
)
PRESETS: Final = {
    config.name: config
    for config in (
        *(_LLAMA_3_2_1B, _LLAMA_3_2_3B, _LLAMA_3_1_8B, _OLMOE_1B_7B),
        *(_SMOLLM_135M, _TINY),
    )
}


def preset(name: str) -> ModelConfig:
    """The preset of that name. Raises ModelError if there is none."""
    if name not in PRESETS:
        raise ModelError(f"there is no preset {name!r}; presets are {', '.join(PRESETS)}")
    return PRESETS[name]
