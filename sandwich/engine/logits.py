"""What is done to one row of logits, or told of it: edits a request asks for, top ids, log probs.

Rows are float32 (vocab_size,). Ties always go to the lower id.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from sandwich.executor.base import Float32Array, StepOutput
from sandwich.requests.request import LogprobEntry, Request
from sandwich.requests.want import Want

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
    """Apply penalties, logit_bias, min_tokens and the request's processor, in place, in turn."""
    params = request.params
    if params.has_penalties:
        _penalise(row, request)
    if params.logit_bias:
        row[params.bias_ids] += params.bias_values
    if request.num_output_tokens < params.min_tokens:
        row[list(request.stop_ids)] = -np.inf
        if row.max() == -np.inf:
            raise NonFiniteLogitsError("min_tokens bans every token of the vocabulary; lower it")
    if request.logits_processor is not None:
        request.logits_processor.mask(row)
        if row.max() == -np.inf:
            raise NonFiniteLogitsError(
                "the reply's grammar allows no token that min_tokens and logit_bias leave"
            )


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


def target_entry(output: StepOutput, row: int, want: Want) -> LogprobEntry:
    """Of the token that a row was to score."""
    assert output.scores is not None
    chosen, rank = output.scores.chosen[row], output.scores.ranks[row]
    return _entry(output, row, want.num_top, want.target, chosen, rank)


def choice_entry(output: StepOutput, row: int, want: Want, token_id: int) -> LogprobEntry:
    """Of a token that was chosen from a row, whose logits are at hand unless it is the argmax."""
    if token_id == output.argmax[row]:
        return _entry(output, row, want.num_top, token_id, output.peaks[row], rank=1)
    logits = output.logits_of(row)
    chosen = logits.item(token_id)
    num_before = np.count_nonzero(logits > chosen)
    num_before += np.count_nonzero(logits[:token_id] == chosen)
    return _entry(output, row, want.num_top, token_id, chosen, int(num_before) + 1)


def _entry(
    output: StepOutput, row: int, num_top: int, token_id: int, logit: float, rank: int
) -> LogprobEntry:
    """Of a token with that raw logit and rank, and of the `num_top` likeliest ones."""
    scores = output.scores
    assert scores is not None
    check_finite(scores.totals[row])  # not a number if any logit of the row is none
    peak, log_total = output.peaks[row], output.log_total(row)
    ids: list[int] = []
    logprobs: list[float] = []
    if num_top:
        best = slice(min(num_top, output.logits.shape[1]))
        ids = scores.top_ids[row, best].tolist()
        logprobs = (scores.top_logits[row, best] - peak - log_total).tolist()
    return LogprobEntry(token_id, logit - peak - log_total, rank, tuple(ids), tuple(logprobs))
