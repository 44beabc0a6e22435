"""What the GEMM benchmark multiplies: matrices of published models, in types of weights."""

from __future__ import annotations

from dataclasses import replace

from codegen.model.tables import matrices
from codegen.spec import ModelShape, WeightFormat
from sandwich.models.presets import preset

# Qwen2.5-7B, whose matrices are measured here like those of the presets.
_QWEN_2_5_7B = replace(
    preset("llama-3.1-8b").shape(1),
    num_layers=28,
    hidden_size=3584,
    num_heads=28,
    num_kv_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    qkv_bias=True,
)
SHAPES: dict[str, ModelShape] = {
    **{name: preset(name).shape(1) for name in ("llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")},
    "qwen2.5-7b": _QWEN_2_5_7B,
}
ROLES = tuple(matrix.role for matrix in matrices(_QWEN_2_5_7B))
# The quantised ones have the names of `--quantization` and the formats it means.
FORMATS: dict[str, WeightFormat] = {
    "bf16": WeightFormat("bfloat16"),
    "fp32": WeightFormat("float32"),
    "int8-w8a8": WeightFormat("int8", activations="int8"),
    "int8": WeightFormat("int8"),
    "int4": WeightFormat("int4", activations="int8", group=32, scale_dtype="float16"),
}

CellKey = tuple[str, str, str, int]  # the name of a WeightFormat, a model, a role, M


def product_dtype(weights: WeightFormat) -> str:
    """What a format's products are of, which sets their peak."""
    if weights.has_int8_activations:
        return "int8"
    return "bfloat16" if weights.is_quantized else weights.dtype


def position(key: CellKey) -> tuple[int, ...]:
    """Sorts cells as they are shown; ValueError if there is no such cell."""
    dtype, model, role, m = key
    formats = [weights.name for weights in FORMATS.values()]
    return formats.index(dtype), list(SHAPES).index(model), ROLES.index(role), m
