"""An executor without a model: tokens are a hash of (token, position), so tests can predict them.

It carries the tests of scheduler, engine, server, metrics.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from sandwich.executor.base import Batch, ExecutorLimits, Float32Array, LazyStart, StepOutput
from sandwich.executor.inputs import StepInputs
from sandwich.executor.scoring import read_rows

PEAK = 8.0  # logit of the hashed token; all others lie in [0, 1)


class NullExecutor(LazyStart):
    """Gives the token `next_tokens(token, position)` the largest logit, over a fixed background.

    `failing_runs` are the numbers of the calls of `run` (from 0) that raise instead.
    """

    def __init__(self, limits: ExecutorLimits, failing_runs: Collection[int] = ()) -> None:
        self.limits = limits
        self._inputs = StepInputs.of(limits)
        self.arrays = self._inputs.arrays
        self.failing_runs = frozenset(failing_runs)
        self.num_runs = 0
        self.is_closed = False
        self._background = np.random.default_rng(0).random(limits.vocab_size, np.float32)
        self._logits = np.tile(self._background, (limits.max_num_logits, 1))
        self._peaks = np.zeros(limits.max_num_logits, np.int64)

    def run(self, batch: Batch) -> StepOutput:
        assert not self.is_closed, "run after close"
        self.num_runs += 1
        if self.num_runs - 1 in self.failing_runs:
            raise RuntimeError(f"injected failure of run {self.num_runs - 1}")
        self._inputs.write(batch)
        last = self.arrays["logit_rows"][: len(batch.logit_rows)]
        argmax = self.next_tokens(self.arrays["token_ids"][last], self.arrays["positions"][last])
        logits, scores = read_rows(
            batch, self.limits.max_num_logits, lambda rows: self._logits_of(argmax[rows])
        )
        states = self._states_of(batch.state_rows) if batch.pooled else None
        return StepOutput(logits, argmax.tolist(), [PEAK] * len(last), scores, states=states)

    def _states_of(self, rows: Sequence[int]) -> Float32Array:
        """Waves over the columns, one for each token id and position."""
        ids, positions = (self.arrays[name][rows, None] for name in ("token_ids", "positions"))
        columns = np.arange(1, self.limits.hidden_size + 1)
        waves: Float32Array = np.sin((ids + 1) * columns + positions).astype(np.float32)
        return waves

    def _logits_of(self, argmax: npt.NDArray[np.int32]) -> Float32Array:
        """Rows with these largest logits, which the next ones overwrite."""
        count = len(argmax)
        rows, stale = np.arange(count), self._peaks[:count]
        self._logits[rows, stale] = self._background[stale]
        self._logits[rows, argmax] = PEAK
        stale[:] = argmax
        return self._logits[:count]

    def close(self) -> None:
        self.is_closed = True

    def next_tokens(
        self, token_ids: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int32]:
        """The greedy successor of each token at its position; a multiplicative hash of both."""
        mixed = token_ids.astype(np.int64) * 2654435761 + positions * 40503 + 97
        mixed = (mixed ^ (mixed >> 15)) % 2**31 * 2246822519 >> 7
        return (mixed % self.limits.vocab_size).astype(np.int32)

    def continuation(self, prompt_token_ids: Sequence[int], num_tokens: int) -> list[int]:
        """The greedy tokens that follow a prompt."""
        tokens = list(prompt_token_ids)
        for _ in range(num_tokens):
            last, position = np.array([[tokens[-1]], [len(tokens) - 1]], np.int32)
            tokens.append(int(self.next_tokens(last, position)[0]))
        return tokens[len(prompt_token_ids) :]
