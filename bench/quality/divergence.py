"""How far one model's next-token distributions are from another's, over the same tokens.

Both engines run the same windows, a block of rows at a time, as many as an executor keeps the
logits of. For each predicted token NumPy has both full rows of logits, and nothing of them is kept
but three numbers: log probabilities of the token under both, and the Kullback-Leibler divergence
sum over the vocabulary of p log(p / q), with p from the reference and q from the other, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.quality.windows import Window
from codegen.spec import Phase
from sandwich.executor.base import Batch, Executor, Float32Array, StepOutput
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import Want

Float64s = npt.NDArray[np.float64]
ROWS_AT_ONCE = 8  # of both models' logits in NumPy: 3 MB for a vocabulary of 49,152


@dataclass(frozen=True)
class Divergence:
    """One entry for each predicted token."""

    reference_nats: Float64s  # -log probability under the reference
    nats: Float64s  # and under the other
    kl: Float64s
    is_same_top: npt.NDArray[np.bool_]  # both find the same token likeliest

    @property
    def agreement(self) -> float:
        """Share of the tokens where both find the same one likeliest."""
        return float(self.is_same_top.mean())

    @property
    def perplexity_ratio(self) -> float:
        """Perplexity of the other over that of the reference."""
        return float(np.exp(np.mean(self.nats - self.reference_nats)))

    @property
    def ratio_error(self) -> float:
        """Standard error of `perplexity_ratio`, by the spread of the tokens' differences."""
        differences = self.nats - self.reference_nats
        if len(differences) < 2:
            return float("nan")
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        return float(error * self.perplexity_ratio)


def divergence(
    reference: Executor,
    other: Executor,
    windows: Sequence[Window],
    on_progress: Callable[[int], None] = lambda num_tokens: None,
) -> Divergence:
    """Of `other` from `reference`. Both must be idle; what is in their KV caches is overwritten."""
    chunk = min(_chunk(reference), _chunk(other))
    nats: list[tuple[float, float]] = []
    kl: list[Float64s] = []
    is_same_top: list[bool] = []
    for window in windows:
        steps = (score(executor, window, chunk) for executor in (reference, other))
        for one, two in zip(*steps, strict=True):
            rows = range(len(one.argmax))
            nats += [(-one.target_logprob(row), -two.target_logprob(row)) for row in rows]
            kl.append(kl_divergence(one.logits, two.logits))
            is_same_top += [a == b for a, b in zip(one.argmax, two.argmax, strict=True)]
            on_progress(len(rows))
    reference_nats, other_nats = np.array(nats, np.float64).T
    return Divergence(reference_nats, other_nats, np.concatenate(kl), np.array(is_same_top))


def score(executor: Executor, window: Window, chunk: int) -> Iterator[StepOutput]:
    """Run a window in steps of `chunk` tokens: the score of each following token, and the logits.

    Tokens that are skipped run before, without either. Arrays of an output are views that the
    executor's next step overwrites.
    """
    request = Request("window", window.token_ids, SamplingParams())
    block_size = executor.limits.block_size
    request.block_table.ids += range(-(-len(window.token_ids) // block_size))
    for start, count in _steps(0, window.skip, executor.limits.max_num_batched_tokens):
        executor.run(_batch(request, start, count, targets=()))
    for start, count in _steps(window.skip, window.num_predicted, chunk):
        targets = window.token_ids[start + 1 : start + 1 + count]
        yield executor.run(_batch(request, start, count, targets))


def _steps(first: int, count: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, count) of the steps that `count` tokens from `first` on take."""
    for start in range(first, first + count, chunk):
        yield start, min(chunk, first + count - start)


def _batch(request: Request, start: int, count: int, targets: Sequence[int]) -> Batch:
    """`count` tokens of the request; the first rows' following tokens are `targets`."""
    return Batch(
        phase=Phase.PREFILL,
        requests=(request,),
        starts=[start],
        num_new=[count],
        num_tokens=count,
        logit_rows=range(len(targets)),
        sampled=[0] * len(targets),
        wants=[Want(needs_logits=True, target=target) for target in targets],
    )


def kl_divergence(reference: Float32Array, other: Float32Array) -> Float64s:
    """KL(softmax(reference) || softmax(other)) of each row, (rows,); rows are (rows, vocab)."""
    parts = []
    for start in range(0, len(reference), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        p, q = _log_softmax(reference[rows]), _log_softmax(other[rows])
        parts.append(np.sum(np.exp(p) * (p - q), axis=1, dtype=np.float64))
    return np.concatenate(parts)


def _log_softmax(logits: Float32Array) -> Float32Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    logprobs: Float32Array = shifted - np.log(totals).astype(np.float32)
    return logprobs


def _chunk(executor: Executor) -> int:
    """Most rows of one step whose logits are kept."""
    return min(executor.limits.max_num_logits, executor.limits.max_num_batched_tokens)
