"""What a server serves: an engine, its tokenizer, and the model's facts that clients can see.

The one place where the server meets the builder of engines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.models.embedding import EmbeddingUse
from sandwich.text.tokenizer import Tokenizer
from sandwich.weights.load import OnProgress, told_nobody

if TYPE_CHECKING:
    from sandwich.startup.build import EngineParts


@dataclass(frozen=True)
class About:
    """What people can see of how the model runs: lines of text, and the plans as an SVG picture."""

    machine: str
    isa: str
    weights: str
    kv_cache: str
    prefill: str
    decode: str
    mixed: str
    picture: str


@dataclass(frozen=True, kw_only=True)
class Backend:
    """`generation_defaults` are SamplingParams fields, from the model's generation_config.json."""

    engine: Engine
    tokenizer: Tokenizer
    model_name: str
    root: str  # the folder or hub id the model came from
    eos_token_ids: frozenset[int]
    generation_defaults: Mapping[str, Any]
    max_num_queued_reqs: int
    about: About
    embedding_use: EmbeddingUse | None = None  # if the model was made for embeddings
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and reply together: what the model and the KV cache both allow."""
        return self.engine.scheduler.max_tokens_per_request


def build_backend(config: EngineConfig, on_progress: OnProgress = told_nobody) -> Backend:
    """Load the model and build its engine. Takes as long as that takes.

    Raises ConfigError, ModelError or MemoryLimitError.
    """
    from sandwich.startup.build import build_engine

    parts = build_engine(config, on_progress=on_progress)
    return Backend(
        engine=parts.engine,
        tokenizer=parts.tokenizer,
        model_name=config.model_name,
        root=config.model,
        eos_token_ids=frozenset(parts.model_config.eos_token_ids),
        generation_defaults=dict(parts.generation_defaults),
        max_num_queued_reqs=config.max_num_queued_reqs,
        about=_about(parts, config.model_name),
        embedding_use=parts.embedding_use,
    )


def _about(parts: EngineParts, model: str) -> About:
    from sandwich.startup.plan_picture import picture

    plans, search, memory = parts.plans, parts.search, parts.memory
    return About(
        machine=parts.machine.cpu_model,
        isa=parts.isa.name,
        weights=memory.weights,
        kv_cache=f"{memory.num_cache_tokens} tokens in {memory.kv.dtype}",
        prefill=f"{search.prefill.chosen.candidate.name}: {search.prefill.reason}",
        decode=f"{search.decode.chosen.candidate.name}: {search.decode.reason}",
        mixed=f"{plans.mixed.render()}: {plans.mixed.reason}",
        picture=picture(model, parts.machine, search).svg(),
    )
