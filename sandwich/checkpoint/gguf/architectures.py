"""What a GGUF file calls things -> what config.json and Hugging Face checkpoints call them.

An architecture is a row of ARCHITECTURES. Source: the names that llama.cpp's converter writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sandwich.checkpoint.gguf.header import Header
from sandwich.errors import ModelError

# Key behind "ARCHITECTURE." -> key of config.json.
_CONFIG_KEYS: Final = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
_TENSORS: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSORS: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED_HEADS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_NORMS_BEHIND: Final = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NORMS_AROUND: Final = _NORMS_BEHIND | {"ffn_norm": "pre_feedforward_layernorm"}
_GLM_TENSORS: Final = {
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_mlp_layernorm",
    "ffn_up": "mlp.gate_up_proj",
}
_PHI_TENSORS: Final = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_SOFT_CAPS: Final = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_MULTIPLIERS: Final = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
ROPE_FACTORS: Final = "rope_freqs.weight"  # divides the frequency of each pair of dims
LONGROPE_FACTORS: Final = {  # the same, for contexts of two sizes
    "rope_factors_short.weight": "short_factor",
    "rope_factors_long.weight": "long_factor",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?([a-z_0-9]+)\.(weight|bias)")

Config = dict[str, Any]


def _unchanged(_: Config) -> None:
    """The metadata say all."""


def _gemma_scores(layers_of_27b: int) -> Callable[[Config], None]:
    """What the largest Gemma divides scores by is not in the metadata: it has so many layers."""

    def complete(config: Config) -> None:
        heads = config["num_attention_heads"]
        is_largest = config["num_hidden_layers"] == layers_of_27b and isinstance(heads, int)
        dim = config["hidden_size"] // heads if is_largest else _head_dim(config)
        config["query_pre_attn_scalar"] = dim or None

    return complete


def _olmo_with_windows(config: Config) -> None:
    """OLMo 3 has the architecture of OLMo 2, and windows."""
    if config["sliding_window"] is not None:
        config["architectures"] = ["Olmo3ForCausalLM"]


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`."""

    model_class: str  # of transformers
    layer_tensors: Mapping[str, str] = field(default_factory=dict)  # beside the common ones
    has_paired_rotation: bool = False  # rows of q and k are reordered, so that pairs are neighbours
    norm_offset: float = 0.0  # what the file's weights of norms are more than a checkpoint's
    keys: Mapping[str, str] = field(default_factory=dict)  # beside _CONFIG_KEYS
    complete: Callable[[Config], None] = _unchanged  # adds what the metadata leave out


ARCHITECTURES: Final = {
    "llama": Architecture("LlamaForCausalLM", has_paired_rotation=True),
    "qwen2": Architecture("Qwen2ForCausalLM"),
    "qwen3": Architecture("Qwen3ForCausalLM", _NORMED_HEADS),
    "gemma2": Architecture(
        "Gemma2ForCausalLM",
        _NORMS_AROUND,
        norm_offset=1.0,
        keys=_SOFT_CAPS,
        complete=_gemma_scores(46),
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM",
        _NORMS_AROUND | _NORMED_HEADS,
        norm_offset=1.0,
        keys=_SOFT_CAPS | {"rope.freq_base_swa": "rope_local_base_freq"},
        complete=_gemma_scores(62),
    ),
    "olmo2": Architecture(
        "Olmo2ForCausalLM", _NORMS_BEHIND | _NORMED_HEADS, complete=_olmo_with_windows
    ),
    "exaone4": Architecture("Exaone4ForCausalLM", _NORMS_BEHIND | _NORMED_HEADS),
    "glm4": Architecture("Glm4ForCausalLM", _GLM_TENSORS),
    "granite": Architecture("GraniteForCausalLM", has_paired_rotation=True, keys=_MULTIPLIERS),
    "phi3": Architecture("Phi3ForCausalLM", _PHI_TENSORS),
    "smollm3": Architecture("SmolLM3ForCausalLM", has_paired_rotation=True),
}


def architecture_of(header: Header) -> Architecture:
    """The row of a file. ModelError if there is none."""
    name = header.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{header.file}: general.architecture is {str(name)[:80]!r}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def tensor_name(architecture: Architecture, name: str) -> str:
    """The Hugging Face name of a tensor; its own if it has none there."""
    match = _NAME.fullmatch(name)
    if match is None:
        return name
    layer, stem, kind = match.groups()
    if layer is None:
        return f"{_TENSORS[stem]}.{kind}" if stem in _TENSORS else name
    stems = _LAYER_TENSORS | dict(architecture.layer_tensors)
    return f"model.layers.{int(layer)}.{stems[stem]}.{kind}" if stem in stems else name


def is_paired(architecture: Architecture, name: str) -> bool:
    """Whether rows of the tensor, by its Hugging Face name, are reordered in the file."""
    return architecture.has_paired_rotation and ("q_proj." in name or "k_proj." in name)


def read_config(header: Header) -> dict[str, Any]:
    """The keys of a config.json, as far as the metadata have them; end tokens included."""
    architecture = architecture_of(header)
    prefix = header.metadata["general.architecture"]
    get = header.metadata.get
    keys = _CONFIG_KEYS | dict(architecture.keys)
    config = {ours: get(f"{prefix}.{key}") for key, ours in keys.items()}
    config["sliding_window"] = config["sliding_window"] or None  # 0 is none
    config["architectures"] = [architecture.model_class]
    config["vocab_size"] = _vocab_size(header, prefix)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    config["mlp_bias"] = "blk.0.ffn_gate.bias" in header.tensors
    config["dtype"] = _dtype(header)
    config["bos_token_id"] = get("tokenizer.ggml.bos_token_id")
    config["rope_scaling"] = _rope_scaling(header, prefix)
    dim, rotated = _head_dim(config), get(f"{prefix}.rope.dimension_count")
    if dim and isinstance(rotated, int) and 0 < rotated != dim:
        if architecture.has_paired_rotation:  # which is of whole heads
            raise ModelError(
                f"{header.file}: {prefix}.rope.dimension_count is {rotated}; {dim}, all dims of a "
                "head, is needed"
            )
        config["partial_rotary_factor"] = rotated / dim
    architecture.complete(config)
    return config


def head_dim(header: Header) -> int:
    """Rows of one head of q or k. ModelError if the metadata do not give an even number."""
    dim = _head_dim(read_config(header))
    if dim < 2 or dim % 2:
        raise ModelError(f"{header.file}: its heads have {dim} dims, not an even number")
    return dim


def _head_dim(config: Mapping[str, Any]) -> int:
    """0 if the numbers are not there."""
    dim, hidden, heads = (config[key] for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if isinstance(dim, int):
        return dim
    both = isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    return hidden // heads if both else 0


def _vocab_size(header: Header, prefix: str) -> Any:
    """Rows of the embedding; what the metadata say where there are no tensors."""
    embedding = header.tensors.get("token_embd.weight")
    if embedding is not None:
        return embedding.shape[0]
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    return header.metadata.get(f"{prefix}.vocab_size", len(tokens) if tokens else None)


def _dtype(header: Header) -> str:
    """float32 only if no matrix is stored in fewer bits."""
    stored = {tensor.dtype for tensor in header.tensors.values() if len(tensor.shape) > 1}
    return "float32" if stored == {"F32"} else "bfloat16"


def _rope_scaling(header: Header, prefix: str) -> dict[str, Any] | None:
    get = header.metadata.get
    kind = get(f"{prefix}.rope.scaling.type")
    if kind is None or kind == "none":
        return None
    original = get(f"{prefix}.rope.scaling.original_context_length")
    return {
        "rope_type": kind,
        "factor": get(f"{prefix}.rope.scaling.factor"),
        "original_max_position_embeddings": original,
        "beta_fast": get(f"{prefix}.rope.scaling.yarn_beta_fast"),
        "beta_slow": get(f"{prefix}.rope.scaling.yarn_beta_slow"),
    }
