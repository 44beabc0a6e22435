"""What an embedding keeps of its prompt's hidden states, while they come chunk by chunk."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]


class Pooling(StrEnum):
    """Which hidden states, behind the final norm, make the embedding of a prompt."""

    MEAN = "mean"  # of all tokens
    LAST = "last"  # that of the last token


def unit(vector: Float32Array, dimensions: int | None = None) -> Float32Array:
    """The first `dimensions` of a vector, or all, scaled to length 1."""
    kept = vector[:dimensions]
    length = np.linalg.norm(kept.astype(np.float64))
    return kept if length == 0 else (kept / length).astype(np.float32)


class Pool:
    """The states of one prompt: of all its tokens in order, or of the last one."""

    def __init__(self, kind: Pooling) -> None:
        self.kind = kind
        self.num_tokens = 0  # whose states are in it
        self._total: npt.NDArray[np.float64] | None = None

    def wanted(self, start: int, end: int, num_tokens: int) -> range:
        """Positions in [start, end) of a prompt of `num_tokens` whose states are to be added."""
        if self.kind is Pooling.LAST:
            return range(num_tokens - 1, end)
        return range(max(start, self.num_tokens), end)

    def add(self, states: Float32Array) -> None:
        """States (tokens, hidden_size) of the next wanted positions."""
        total = states.sum(axis=0, dtype=np.float64)
        self._total = total if self._total is None else self._total + total
        self.num_tokens += len(states)

    def vector(self) -> Float32Array:
        """The mean of what was added, (hidden_size,)."""
        assert self._total is not None
        return (self._total / self.num_tokens).astype(np.float32)
