"""The model that a configuration names: what is known of it, and how its weights are loaded."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from codegen.layout.model import ModelLayout
from platforms.memory import Arena
from sandwich.checkpoint.formats import open_source
from sandwich.checkpoint.source import ModelSource
from sandwich.checkpoint.tokenizer_files import TokenizerFiles
from sandwich.config import STORED, EngineConfig
from sandwich.models.config import ModelConfig
from sandwich.models.embedding import EmbeddingUse, embedding_use
from sandwich.models.presets import PRESETS, preset
from sandwich.models.sampling_defaults import generation_defaults
from sandwich.startup.hub import resolve_model
from sandwich.startup.packaged import recommended_sampling
from sandwich.text.byte_tokenizer import byte_tokenizer
from sandwich.weights.cache import WeightCache
from sandwich.weights.load import ModelWeights, OnProgress, load_weights, random_weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model before its weights are loaded."""

    config: ModelConfig
    tokenizer: TokenizerFiles
    generation_defaults: dict[str, Any]  # fields of SamplingParams
    source: ModelSource | None  # of the weights; None: random ones
    embedding_use: EmbeddingUse | None = None  # if the model was made for embeddings

    @staticmethod
    def of(config: EngineConfig) -> Model:
        """The model of `config`: a published shape with random weights, or one that is at hand.

        Raises ConfigError or ModelError.
        """
        if config.random_weights and config.model in PRESETS:
            return Model(preset(config.model), byte_tokenizer(), {}, None)
        path = resolve_model(config.model)
        source = open_source(path)
        model = replace(ModelConfig.from_source(source), name=config.model_name)
        if not (source.has_tensors or config.random_weights or config.executor == "null"):
            source.checkpoint()  # says what is missing
        if config.quantization in STORED and model.stored.remark:
            _log.warning("weights: %s (--quantization says otherwise)", model.stored.remark)
        return Model(
            model,
            source.tokenizer(),
            {**recommended_sampling(config.model), **generation_defaults(source.generation())},
            None if config.random_weights else source,
            embedding_use(path) if path.is_dir() else None,
        )

    def load(
        self,
        layout: ModelLayout,
        arena: Arena,
        seed: int,
        cache: WeightCache,
        on_progress: OnProgress,
    ) -> ModelWeights:
        """Fill `arena`. `seed`: of random weights, which nobody waits for."""
        if self.source is None:
            return random_weights(self.config, layout, arena, seed)
        checkpoint = self.source.checkpoint()
        return load_weights(checkpoint, self.config, layout, arena, on_progress, cache)
