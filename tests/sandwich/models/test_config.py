"""config.json as published and as transformers 4 and 5 write it; what is refused names the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from codegen.spec import Experts
from sandwich.checkpoint.huggingface import HuggingFaceFolder
from sandwich.errors import ModelError
from sandwich.models.config import ModelConfig
from sandwich.models.presets import PRESETS, preset
from sandwich.models.rope import RopeConfig

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "vocab_size": 128256,
}


def as_transformers_5(config: dict[str, Any]) -> dict[str, Any]:
    written = dict(config)
    written["dtype"] = written.pop("torch_dtype")
    theta, scaling = written.pop("rope_theta"), written.pop("rope_scaling")
    written["rope_parameters"] = {**(scaling or {"rope_type": "default"}), "rope_theta": theta}
    return written


def read(folder: Path, config: Any, generation: Any = None) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_source(HuggingFaceFolder(folder))


def test_llama_2_is_read_though_it_says_less(tmp_path: Path) -> None:
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    assert read(folder, LLAMA_2_7B) == ModelConfig(
        name="llama-2-7b",
        num_layers=32,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        intermediate_size=11008,
        vocab_size=32000,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope=RopeConfig(10000.0),
        dtype="float16",
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.mark.parametrize("write", [dict, as_transformers_5])
def test_the_1b_preset_is_the_published_model(tmp_path: Path, write: Any) -> None:
    folder = tmp_path / "llama-3.2-1b"
    folder.mkdir()
    assert read(folder, write(LLAMA_3_2_1B)) == preset("llama-3.2-1b")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_heads_that_share_evenly(name: str) -> None:
    shape = preset(name).shape(64)
    assert shape.num_heads % shape.num_kv_heads == 0
    assert shape.head_dim % 2 == 0


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no preset 'gpt'.*llama-3\.2-1b.*tiny"):
        preset("gpt")


def test_the_shape_carries_what_kernels_need(tmp_path: Path) -> None:
    config = read(tmp_path, {**LLAMA_3_2_1B, "attention_bias": True, "mlp_bias": True})
    shape = config.shape(4096)
    assert (shape.qkv_bias, shape.o_bias, shape.mlp_bias) == (True, True, True)
    assert (shape.tied_embeddings, shape.max_model_len) == (True, 4096)
    assert (shape.num_kv_heads, shape.head_dim, shape.group_size) == (8, 64, 4)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (None, None, ()),
        (2, None, (2,)),
        ([2, 3], None, (2, 3)),
        (2, {}, (2,)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {"eos_token_id": [5, 6]}, (5, 6)),
        (2, {"eos_token_id": 0}, (0,)),
    ],
)
def test_end_tokens_come_from_generation_config_first(
    tmp_path: Path, in_config: Any, in_generation: Any, expected: tuple[int, ...]
) -> None:
    config = read(tmp_path, {**LLAMA_2_7B, "eos_token_id": in_config}, in_generation)
    assert config.eos_token_ids == expected


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 4}, RopeConfig(10000.0, "linear", 4.0)),
        ({"rope_type": "linear", "factor": 2.5}, RopeConfig(10000.0, "linear", 2.5)),
        ({"rope_type": "default"}, RopeConfig(10000.0)),
    ],
)
def test_rope_scaling_is_read_in_old_and_new_spelling(
    tmp_path: Path, scaling: Any, expected: RopeConfig
) -> None:
    config = read(tmp_path, {**LLAMA_2_7B, "rope_scaling": scaling})
    assert config.rope == expected
    assert config.max_context_len == 4096 * expected.factor


def test_llama3_rope_without_an_original_length_takes_the_models(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
    config = read(tmp_path, {**LLAMA_2_7B, "rope_scaling": scaling})
    assert config.rope.original_max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("architectures", ["GPT2LMHeadModel"], "LlamaForCausalLM"),
        ("architectures", [], "LlamaForCausalLM"),
        ("hidden_act", "gelu", "supported: silu"),
        ("quantization_config", {"quant_method": "hqq"}, "supported: gptq, awq"),
        ("sliding_window", 4096, "full attention"),
        (
            "rope_scaling",
            {"rope_type": "dynamic", "factor": 4.0},
            "supported: default, linear, llama3, yarn, longrope",
        ),
        ("rope_scaling", {"type": "dynamic", "factor": 4.0}, "supported: default, linear, llama3"),
        ("rope_scaling", {"rope_type": "linear"}, "factor is None"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "low_freq_factor is None"),
        ("rope_scaling", "linear", "an object"),
        ("rope_scaling", {"factor": 4.0}, "rope_scaling.type is None; the other keys"),
        (
            "rope_parameters",
            {"rope_theta": 10000.0, "factor": 4.0},
            "write one of default, linear, llama3, yarn, longrope",
        ),
        ("rope_parameters", {"full_attention": {"rope_type": "default"}}, "between layers"),
        ("partial_rotary_factor", 1.5, "a share of at most 1"),
        ("partial_rotary_factor", 0.2, "25 of 128 dims would be rotated; pairs are needed"),
        ("partial_rotary_factor", 0.001, "0 of 128 dims"),
        (
            "rope_scaling",
            {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [1.0] * 63},
            "64 factors are needed",
        ),
        (
            "rope_scaling",
            {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [0.0] * 64},
            "numbers above 0",
        ),
        ("hidden_size", 0, "at least 1"),
        ("hidden_size", "4096", "whole number"),
        ("hidden_size", 4100, "multiple of num_attention_heads"),
        ("num_hidden_layers", None, "whole number"),
        ("num_hidden_layers", True, "whole number"),
        ("num_hidden_layers", 2**30 + 16, "at most 1024"),
        ("num_key_value_heads", 5, "divide num_attention_heads"),
        ("head_dim", 63, "pairs"),
        ("vocab_size", 1.5, "whole number"),
        ("rms_norm_eps", -1, "above 0"),
        ("rope_theta", "big", "above 0"),
        ("tie_word_embeddings", "yes", "true or false"),
        ("eos_token_id", ["</s>"], "token id"),
        ("torch_dtype", "float8_e4m3fn", "supported: float32, float16, bfloat16"),
    ],
)
def test_what_is_not_supported_is_refused_by_file_key_and_value(
    tmp_path: Path, key: str, value: Any, complaint: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, {**LLAMA_2_7B, key: value})
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert key in message
    assert complaint in message


QWEN3_30B_A3B = {
    **LLAMA_2_7B,
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}


def test_experts_are_read_as_published_and_as_transformers_5_writes_them(tmp_path: Path) -> None:
    expected = Experts(count=128, per_token=8, size=768, is_normalised=True)
    assert read(tmp_path, QWEN3_30B_A3B).switches.traits.experts == expected
    renamed = {**QWEN3_30B_A3B, "num_local_experts": QWEN3_30B_A3B["num_experts"]}
    del renamed["num_experts"]
    assert read(tmp_path, renamed).switches.traits.experts == expected


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("num_experts_per_tok", 129, "at most num_experts, which is 128"),
        ("num_experts", 0, "at least 1"),
        ("mlp_only_layers", [0], "experts in every layer"),
        ("decoder_sparse_step", 2, "experts in every layer"),
    ],
)
def test_experts_that_are_not_supported_are_refused(
    tmp_path: Path, key: str, value: Any, complaint: str
) -> None:
    with pytest.raises(ModelError, match=rf"{key}.*{complaint}"):
        read(tmp_path, {**QWEN3_30B_A3B, key: value})


def test_another_model_type_without_architectures_is_refused(tmp_path: Path) -> None:
    config = {**LLAMA_2_7B, "architectures": None}
    assert read(tmp_path, config).num_layers == 32
    with pytest.raises(ModelError, match=r"model_type is 'gpt2'; supported: .*llama"):
        read(tmp_path, {**config, "model_type": "gpt2"})


def test_a_long_value_is_cut_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        read(tmp_path, {**LLAMA_2_7B, "hidden_act": "x" * 10_000})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "\xff", "[" * 100_000])
def test_a_damaged_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, "latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_source(HuggingFaceFolder(tmp_path))


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        ModelConfig.from_source(HuggingFaceFolder(tmp_path))
