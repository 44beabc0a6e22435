"""How well a model predicts a text, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Perplexity:
    """Of a text, predicted in windows that do not overlap; `nats` is the summed cross entropy."""

    num_bytes: int
    num_tokens: int
    nats: float

    @property
    def per_token(self) -> float:
        return math.exp(self.nats / self.num_tokens)

    @property
    def per_byte(self) -> float:
        return math.exp(self.nats / self.num_bytes)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / self.num_bytes / math.log(2)

    def __add__(self, other: Perplexity) -> Perplexity:
        return Perplexity(
            self.num_bytes + other.num_bytes,
            self.num_tokens + other.num_tokens,
            self.nats + other.nats,
        )
