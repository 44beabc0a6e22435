"""GGUF files of every architecture are read as the Hugging Face folders they were made of.

Names of tensors are those of the `gguf` package's own table; metadata and what becomes of the
values are as llama.cpp's converter writes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from safetensors.numpy import load_file

from sandwich.checkpoint.gguf.architectures import ARCHITECTURES
from sandwich.checkpoint.gguf.source import GgufModel
from sandwich.models.config import ModelConfig
from tests.sandwich.checkpoint.conftest import tokenizer_metadata, write_gguf
from tests.sandwich.conftest import byte_level
from tests.sandwich.models.cases import CASES, Case
from tests.sandwich.models.conftest import read_config, write_model

Arrays = dict[str, np.ndarray]
Metadata = dict[str, Any]


@dataclass
class Kind:
    """A model of tests/sandwich/models as a GGUF file: what its architecture adds."""

    arch: MODEL_ARCH
    case: str
    changes: Metadata = field(default_factory=dict)  # of the case's config
    metadata: Callable[[Metadata], Metadata] = lambda _: {}
    is_paired: bool = False
    norm_offset: float = 0.0


def gemma(config: Metadata) -> Metadata:
    rope = config.get("rope_parameters", {})
    return {
        "attention.sliding_window": config["sliding_window"],
        "attn_logit_softcapping": config.get("attn_logit_softcapping"),
        "final_logit_softcapping": config.get("final_logit_softcapping"),
        "rope.freq_base_swa": rope.get("sliding_attention", {}).get("rope_theta"),
        **scaling(rope.get("full_attention", {})),
    }


def scaling(rope: Metadata) -> Metadata:
    if rope.get("rope_type", "default") not in ("linear", "yarn"):
        return {}
    return {
        "rope.scaling.type": rope["rope_type"],
        "rope.scaling.factor": rope["factor"],
        "rope.scaling.original_context_length": rope.get("original_max_position_embeddings"),
        "rope.scaling.yarn_beta_fast": rope.get("beta_fast"),
    }


def granite(config: Metadata) -> Metadata:
    return {
        "embedding_scale": config["embedding_multiplier"],
        "residual_scale": config["residual_multiplier"],
        "attention.scale": config["attention_multiplier"],
        "logit_scale": config["logits_scaling"],
    }


def phi(config: Metadata) -> Metadata:
    rope = config["rope_parameters"]
    dims = config["hidden_size"] // config["num_attention_heads"]
    return {
        "rope.dimension_count": int(rope["partial_rotary_factor"] * dims),
        "attention.sliding_window": config["sliding_window"] or 0,
        "rope.scaling.original_context_length": config["original_max_position_embeddings"],
        "rope.scaling.attn_factor": 1.1338934 if "factor" in rope else None,
    }


def windows(config: Metadata) -> Metadata:
    full = config["rope_parameters"].get("full_attention", {})
    return {"attention.sliding_window": config["sliding_window"], **scaling(full)}


KINDS = [
    Kind(MODEL_ARCH.LLAMA, "gqa-tied", is_paired=True),
    Kind(MODEL_ARCH.QWEN2, "qwen2"),
    Kind(MODEL_ARCH.QWEN3, "qwen3"),
    Kind(MODEL_ARCH.GEMMA2, "gemma2", {"query_pre_attn_scalar": 20}, gemma, norm_offset=1.0),
    Kind(MODEL_ARCH.GEMMA3, "gemma3", {"query_pre_attn_scalar": 16}, gemma, norm_offset=1.0),
    Kind(MODEL_ARCH.OLMO2, "olmo2"),
    Kind(MODEL_ARCH.OLMO2, "olmo3-yarn", metadata=windows),
    Kind(MODEL_ARCH.EXAONE4, "exaone4", {"rope_parameters": None}, windows),
    Kind(MODEL_ARCH.EXAONE4, "exaone4-full"),
    Kind(MODEL_ARCH.GLM4, "glm4", metadata=lambda _: {"rope.dimension_count": 8}),
    Kind(MODEL_ARCH.GRANITE, "granite", metadata=granite, is_paired=True),
    Kind(MODEL_ARCH.PHI3, "phi3", metadata=phi),
    Kind(MODEL_ARCH.PHI3, "phi4-partial-longrope", metadata=phi),
    Kind(MODEL_ARCH.SMOLLM3, "smollm3", is_paired=True),
]


def paired(values: np.ndarray, heads: int) -> np.ndarray:
    """Halves of a head become neighbours."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def convert(kind: Kind, folder: Path, file: Path) -> Path:
    """The folder's model as a file of the kind."""
    config = json.loads((folder / "config.json").read_text())
    arch = MODEL_ARCH_NAMES[kind.arch]
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        rope = rope["full_attention"]
    own = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": rope["rope_theta"],
        **kind.metadata(config),
    }
    metadata = {f"{arch}.{key}": value for key, value in own.items() if value is not None}
    names = get_tensor_name_map(kind.arch, config["num_hidden_layers"])
    tensors: Arrays = {}
    for name, values in load_file(folder / "model.safetensors").items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        if kind.is_paired and ("q_proj" in name or "k_proj" in name):
            heads = "num_attention_heads" if "q_proj" in name else "num_key_value_heads"
            values = paired(values, config[heads])
        if "norm" in name:
            values = values + np.float32(kind.norm_offset)
        tensors[found] = values
    for key in ("short", "long"):
        if f"{key}_factor" in rope:
            tensors[f"rope_factors_{key}.weight"] = np.array(rope[f"{key}_factor"], np.float32)
    whole = {"general.architecture": arch, **tokenizer_metadata(byte_level()), **metadata}
    return write_gguf(file, whole, tensors)


def comparable(config: ModelConfig) -> Any:
    """All that decides over what is computed, with floats as a file holds them."""
    shape = config.shape(config.max_position_embeddings)
    traits = replace(shape.traits, kinds=shape.kinds)
    values = asdict(replace(config, switches=replace(config.switches, traits=traits)))
    for key in ("name", "dtype", "bos_token_id", "eos_token_ids"):
        del values[key]
    return rounded(values)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.case)
def test_a_file_is_read_as_the_folder_it_was_made_of(kind: Kind, tmp_path: Path) -> None:
    case: Case = next(case for case in CASES if case.name == kind.case)
    write_model(replace(case, config=case.config | kind.changes), tmp_path / "folder")
    model = GgufModel(convert(kind, tmp_path / "folder", tmp_path / "m.gguf"))
    found = ModelConfig.from_source(model)
    assert comparable(found) == comparable(read_config(tmp_path / "folder"))
    expected = load_file(tmp_path / "folder" / "model.safetensors")
    with model.checkpoint() as checkpoint:
        assert checkpoint.tensors.keys() == expected.keys()
        for name, values in expected.items():
            buffer = np.empty(values.nbytes, np.uint8)
            rows = checkpoint.read_rows(name, 0, len(values), buffer)
            np.testing.assert_allclose(rows, values, rtol=0, atol=1e-6 * kind.norm_offset)


def test_every_architecture_is_tried() -> None:
    assert {MODEL_ARCH_NAMES[kind.arch] for kind in KINDS} == ARCHITECTURES.keys()


@pytest.mark.parametrize(
    ("arch", "layers", "scalar"),
    [("gemma2", 46, 144), ("gemma2", 42, 256), ("gemma3", 62, 168), ("gemma3", 34, 256)],
)
def test_the_largest_gemma_divides_scores_by_hidden_sizes(
    tmp_path: Path, arch: str, layers: int, scalar: int
) -> None:
    hidden, heads = {46: (4608, 32), 62: (5376, 32)}.get(layers, (2560, 8))
    own = {
        "block_count": layers,
        "context_length": 8192,
        "embedding_length": hidden,
        "feed_forward_length": 64,
        "attention.head_count": heads,
        "attention.key_length": 256,
    }
    metadata = {f"{arch}.{key}": value for key, value in own.items()}
    whole = {"general.architecture": arch, **tokenizer_metadata(byte_level()), **metadata}
    model = GgufModel(write_gguf(tmp_path / "m.gguf", whole, {}))
    assert model.config().get("query_pre_attn_scalar") == scalar
