"""The work that engines are compared at, and the formats of weights that make it the same work."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Self

from sandwich.errors import ConfigError

FORMATS = ("bf16", "q8_0", "q4_0", "w8a8")


@dataclass(frozen=True)
class Work:
    """A prompt of `tokens` tokens, or decode steps of `batch` sequences of `tokens` tokens each."""

    kind: str  # prefill or decode
    tokens: int
    batch: int = 1
    steps: int = 16

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `512` (a prompt) or `8x128` (8 sequences of 128 tokens); ConfigError for others."""
        match = re.fullmatch(r"(?:(\d+)x)?(\d+)", text)
        if match is None or "0" in (match[1], match[2]):
            raise ConfigError(f"{text!r} is neither a prompt's length nor BATCHxCONTEXT")
        if match[1] is None:
            return cls("prefill", int(match[2]))
        return cls("decode", int(match[2]), int(match[1]))

    @property
    def name(self) -> str:
        return f"prefill {self.tokens}" if self.kind == "prefill" else self._decode_name

    @property
    def _decode_name(self) -> str:
        return f"decode {self.batch} x {self.tokens}"

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest sequence, with room for those that wait for the others' prompts."""
        return self.tokens + 1 if self.kind == "prefill" else self.tokens + 2 * self.steps + 64

    def tokens_per_second(self, seconds: float) -> float:
        """Of a prompt, or of all sequences together."""
        return (self.tokens if self.kind == "prefill" else self.batch) / seconds

    def request(self) -> dict[str, Any]:
        """What a worker is told."""
        fields = asdict(self)
        if self.kind == "prefill":
            return {"work": "prefill", "tokens": self.tokens}
        return {
            "work": "decode",
            "batch": fields["batch"],
            "context": fields["tokens"],
            "steps": fields["steps"],
        }
