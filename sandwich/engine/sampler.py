"""From logits to tokens, one row at a time, so that no request can feel another.

A token is a function of its row and its request's parameters, seed and tokens so far: the random
stream is counter based, so neither the batch nor a preemption can change it.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sandwich.engine.logits import (
    Ids,
    NonFiniteLogitsError,
    check_finite,
    choice_entry,
    edit_logits,
    target_entry,
    top_ids,
)
from sandwich.errors import SandwichError
from sandwich.executor.base import Batch, Float32Array, StepOutput
from sandwich.requests.request import LogprobEntry, Request, SampledTokens
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import ARGMAX

logger = logging.getLogger(__name__)

Weights = npt.NDArray[np.float32]
NO_TOKENS = SampledTokens()

# Weights are summed in blocks of this many first: at 128k entries a plain float64 cumulative sum
# costs more than everything else in `choose` together.
_BLOCK = 256
_FEW = 4096  # weights of which a nucleus is found faster than an attempt is checked
_MOST_ATTEMPTS = 4  # to draw in a nucleus, before it is found
_BIN_OF_ONE = int(np.float32(1.0).view(np.int32)) >> 16


class Sampler:
    """Chooses the tokens of a batch. Holds nothing that could change a choice."""

    def __init__(self) -> None:
        self._uniform = UniformStream()

    def sample(self, output: StepOutput, batch: Batch) -> list[SampledTokens]:
        """One entry per request of the batch. A row that fails ends its own request only."""
        tokens = [NO_TOKENS] * len(batch.requests)
        prompt_logprobs: dict[int, list[LogprobEntry]] = defaultdict(list)
        rows = zip(batch.sampled, batch.wants, output.argmax, output.peaks, strict=True)
        for row, (index, want, argmax, peak) in enumerate(rows):
            if want == ARGMAX and math.isfinite(peak):
                tokens[index] = SampledTokens((argmax,))
                continue
            request = batch.requests[index]
            try:
                check_finite(peak)
                if want.is_of_given_token:
                    prompt_logprobs[index].append(target_entry(output, row, want))
                    continue
                token = (
                    self._choose(output.logits_of(row), request) if want.needs_logits else argmax
                )
                tokens[index] = SampledTokens((token,))
                if want.is_scored:
                    entry = choice_entry(output, row, want, token)
                    tokens[index] = SampledTokens((token,), (entry,))
            except (NonFiniteLogitsError, SandwichError) as error:
                tokens[index] = SampledTokens(error=str(error))
            except Exception as error:
                logger.exception("sampling for request %s failed", request.request_id)
                tokens[index] = SampledTokens(error=f"sampling failed: {error!r}")
        for index, entries in prompt_logprobs.items():
            tokens[index] = tokens[index]._replace(prompt_logprobs=tuple(entries))
        if output.states is not None:
            _add_states(tokens, output.states, batch)
        return tokens

    def _choose(self, row: Float32Array, request: Request) -> int:
        check_finite(float(row.max()))
        if request.params.edits_logits or request.logits_processor is not None:
            row = row.copy()
            edit_logits(row, request)
        if request.params.is_greedy:
            return int(row.argmax())
        place = (request.seed, request.choice_index, request.num_output_tokens)
        return choose(row, request.params, partial(self._uniform, *place))


def _add_states(tokens: list[SampledTokens], states: Float32Array, batch: Batch) -> None:
    """Hand each request its rows of the hidden states that were wanted."""
    first = 0
    for index, rows in batch.pooled:
        own = states[first : first + len(rows)]
        first += len(rows)
        if not np.isfinite(own).all():
            error = "a hidden state of the model is not a number; try --dtype float32"
            tokens[index] = SampledTokens(error=error)
        elif len(rows):
            tokens[index] = SampledTokens(states=own)


class UniformStream:
    """Numbers in [0, 1) that are a function of (seed, choice, index, attempt) alone.

    Philox 4x64 (Salmon et al., SC 2011) with key (seed, choice) and counter (index, attempt), its
    first word. One generator is repositioned for each number; to build one would cost several times
    more.
    """

    def __init__(self) -> None:
        self._philox = np.random.Philox(key=0)
        self._state: Any = self._philox.state
        self._state["buffer_pos"] = 4  # nothing is left of the last block

    def __call__(self, seed: int, choice: int, index: int, attempt: int = 0) -> float:
        self._state["state"]["key"][:] = seed, choice
        self._state["state"]["counter"][:2] = index, attempt
        self._philox.state = self._state
        return (int(self._philox.random_raw()) >> 11) * 2.0**-53


def choose(row: Float32Array, params: SamplingParams, uniform: Callable[[int], float]) -> int:
    """A token of the distribution that temperature, top_k, min_p and top_p leave: the one at
    `uniform(0)`, or, where attempts may fail, at the first of `uniform(0)`, `uniform(1)`, ... that
    succeeds.
    """
    ids: Ids | None = top_ids(row, params.top_k) if 0 < params.top_k < len(row) else None
    logits = row if ids is None else row[ids]
    weights: Weights = logits - logits.max()
    weights /= np.float32(params.temperature)
    np.exp(weights, out=weights)  # the largest is 1
    if params.min_p > 0.0:
        weights[weights < params.min_p] = 0.0
    if params.top_p == 1.0:
        index = draw(weights, uniform(0))
    elif len(weights) <= _FEW:
        index = draw_from(weights, nucleus(weights, params.top_p), uniform(0))
    else:
        index = draw_in_nucleus(weights, params.top_p, uniform)
    return index if ids is None else int(ids[index])


def draw_in_nucleus(weights: Weights, top_p: float, uniform: Callable[[int], float]) -> int:
    """Index of a weight of the `nucleus`, drawn by rejection (von Neumann, 1951): a draw from all
    weights that lies in the nucleus is a draw from it. To see whether one index lies in it takes a
    fraction of the time that finding all of them does, and as long whatever the distribution is.
    """
    sums = block_sums(weights)
    for attempt in range(_MOST_ATTEMPTS):
        index = draw(weights, uniform(attempt), sums)
        if weight_before(weights, index) < top_p * sums[-1]:
            return index
    return draw_from(weights, nucleus(weights, top_p), uniform(_MOST_ATTEMPTS))


def weight_before(weights: Weights, index: int) -> float:
    """Sum of the weights that come before one in descending order, the lower index first."""
    weight = weights[index]
    larger = weights > weight
    num_equal = int(np.count_nonzero(weights[:index] == weight))
    return float((weights * larger).sum()) + num_equal * float(weight)


def draw_from(weights: Weights, kept: Ids, uniform: float) -> int:
    """As `draw`, of the weights at the indices `kept` alone."""
    return int(kept[draw(weights[kept], uniform)])


def nucleus(weights: Weights, top_p: float) -> Ids:
    """Indices of the fewest largest weights whose sum reaches `top_p` of the total, in any order.

    Weights lie in [0, 1] and the largest is 1. Nothing long is sorted: weights below the mean of
    what may be left out are not needed, the others are summed in bins by the upper half of their
    bits (a larger number has larger bits), and only the bin that reaches `top_p` is sorted.
    """
    total = float(weights.sum(dtype=np.float64))
    candidates = np.flatnonzero(weights >= (1.0 - top_p) * total / len(weights))
    weights = weights[candidates]
    bins = _BIN_OF_ONE - (weights.view(np.int32) >> 16)
    sums = np.cumsum(np.bincount(bins, weights))
    edge = min(int(np.searchsorted(sums, top_p * total)), len(sums) - 1)
    before = sums[edge - 1] if edge else 0.0
    within = np.flatnonzero(bins == edge)
    within = within[np.argsort(-weights[within], kind="stable")]
    reached = before + np.cumsum(weights[within], dtype=np.float64)
    within = within[: int(np.searchsorted(reached, top_p * total)) + 1]
    kept: Ids = np.concatenate([np.flatnonzero(bins < edge), within])
    return candidates[kept]


def block_sums(weights: Weights) -> npt.NDArray[np.float64]:
    """The running sum at the end of each block of weights."""
    starts = np.arange(0, len(weights), _BLOCK)
    sums: npt.NDArray[np.float64] = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    return sums


def draw(weights: Weights, uniform: float, sums: npt.NDArray[np.float64] | None = None) -> int:
    """Index of the weight at `uniform` in [0, 1) of the running sum; never one of weight 0.

    `sums`: `block_sums` of the weights, if they are known.
    """
    if sums is None:
        sums = block_sums(weights)
    target = uniform * sums[-1]  # below sums[-1], also rounded, as uniform <= 1 - 2^-53
    block = int(np.searchsorted(sums, target, side="right"))
    before = sums[block - 1] if block else 0.0
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK]
    index = int(np.searchsorted(before + np.cumsum(inside, dtype=np.float64), target, side="right"))
    if index == len(inside):  # the two ways to sum the block differ in their last bits
        index = int(np.flatnonzero(inside)[-1])
    return block * _BLOCK + index
