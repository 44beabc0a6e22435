"""What a server serves: an engine, its tokenizer, and the model's facts that clients can see.

The one place where the server meets the builder of engines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sandwich.config import EngineConfig
from sandwich.engine.engine import Engine
from sandwich.text.tokenizer import Tokenizer


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
    created: int = field(default_factory=lambda: int(time.time()))  # seconds since 1970

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and reply together: what the model and the KV cache both allow."""
        return self.engine.scheduler.max_tokens_per_request


def build_backend(config: EngineConfig) -> Backend:
    """Load the model and build its engine. Takes as long as that takes.

    Raises ConfigError, ModelError or MemoryLimitError.
    """
    from sandwich.startup.build import build_engine

    parts = build_engine(config)
    return Backend(
        engine=parts.engine,
        tokenizer=parts.tokenizer,
        model_name=config.model_name,
        root=config.model,
        eos_token_ids=frozenset(parts.model_config.eos_token_ids),
        generation_defaults=dict(parts.generation_defaults),
        max_num_queued_reqs=config.max_num_queued_reqs,
    )
