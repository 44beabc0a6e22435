"""What is done to, or read from, one row of logits: edits a request asks for, top ids, log probs.

Rows are float32 (vocab_size,). Ties always go to the lower id.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sandwich.executor.base import Float32Array
from sandwich.requests.request import LogprobEntry, Request

Ids = npt.NDArray[np.int64]

# A row is looked at in this many interleaved groups to find a bound for its k largest.
_NUM_GROUPS = 4096


class NonFiniteLogitsError(ArithmeticError):
    """A row has NaN or infinity where a number must be, or no token is left in it."""


def check_finite(largest: float) -> None:
    """Raise unless the largest logit of a row, which is NaN if any is, is a number."""
    if not math.isfinite(largest):
        raise NonFiniteLogitsError(
            f"the model's largest logit for the next token is {largest}, not a number to choose "
            "by; the weights or the arithmetic are at fault, try --dtype float32"
        )


def edit_logits(row: Float32Array, request: Request) -> None:
    """Apply penalties, logit_bias and min_tokens to `row`, in place, in this order."""
    params = request.params
    if params.has_penalties:
        _penalise(row, request)
    if params.logit_bias:
        row[params.bias_ids] += params.bias_values
    if request.num_output_tokens < params.min_tokens:
        row[list(request.stop_ids)] = -np.inf
        if row.max() == -np.inf:
            raise NonFiniteLogitsError("min_tokens bans every token of the vocabulary; lower it")


def _penalise(row: Float32Array, request: Request) -> None:
    """Repetition (prompt and output), then presence and frequency (output only), as in vLLM."""
    params = request.params
    if params.repetition_penalty != 1.0:
        seen = request.token_ids[: request.num_tokens]  # repeated ids write the same value
        values = row[seen]
        row[seen] = np.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = np.unique(request.output_token_ids, return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts


def top_ids(row: Float32Array, k: int) -> Ids:
    """Ids of the k largest values, best first; all of them if there are fewer.

    At most k of the maxima of disjoint groups lie above the k-th largest value, so the k-th largest
    maximum is a lower bound for it; few values pass that bound, and only those are sorted.
    """
    k = min(k, len(row))
    depth = len(row) // _NUM_GROUPS
    if depth >= 2 and 0 < k <= _NUM_GROUPS:
        maxima = row[: depth * _NUM_GROUPS].reshape(depth, _NUM_GROUPS).max(axis=0)
        bound = np.partition(maxima, _NUM_GROUPS - k)[_NUM_GROUPS - k]
        candidates = np.flatnonzero(row >= bound)
    else:
        candidates = np.arange(len(row))
    return candidates[np.argsort(-row[candidates], kind="stable")[:k]]


def logprob_entry(row: Float32Array, token_id: int, num_top: int) -> LogprobEntry:
    """Log probability and rank of one token of a raw row, and of the `num_top` likeliest."""
    peak = row.max()
    check_finite(peak)
    log_total = np.log(np.exp(row - peak).sum(dtype=np.float64))  # above the peak
    chosen = row[token_id]
    num_before = np.count_nonzero(row > chosen) + np.count_nonzero(row[:token_id] == chosen)
    best = top_ids(row, num_top)
    return LogprobEntry(
        token_id=token_id,
        logprob=float(chosen - peak - log_total),
        rank=int(num_before) + 1,
        top_ids=tuple(best.tolist()),
        top_logprobs=tuple((row[best] - peak - log_total).tolist()),
    )
