"""The NumPy executor of a tiny model of 64 positions, whatever format it comes in."""

from __future__ import annotations

from codegen.layout.model import KvLayout, ModelLayout
from platforms.memory import Arena
from sandwich.checkpoint.source import ModelSource
from sandwich.config import EngineConfig
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.reference import ReferenceExecutor
from sandwich.models.config import ModelConfig
from sandwich.startup.quantization import weight_formats
from sandwich.weights.load import load_weights


def executor_of(source: ModelSource, quantization: str = "auto") -> ReferenceExecutor:
    """In float32, its matrices as `--quantization` says."""
    config = ModelConfig.from_source(source)
    formats = weight_formats(EngineConfig(quantization=quantization), "float32", config.stored)
    shape = config.shape(64)
    layout = ModelLayout.build(shape, "float32", 8, 32, formats.layers, formats.lm_head)
    arena = Arena(layout.weight_bytes, "weights")
    weights = load_weights(source.checkpoint(), config, layout, arena)
    limits = ExecutorLimits(32, 5, 2, 64, 64, config.vocab_size)
    return ReferenceExecutor(weights, KvLayout.of_shape(shape, 32, 8, "float32", 5), limits)
