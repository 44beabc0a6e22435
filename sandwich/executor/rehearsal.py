"""Batches of nobody's requests: to warm up a program, or to time a step of a given size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codegen.spec import Phase
from sandwich.executor.base import Batch
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import ARGMAX


def rehearsal(
    phase: Phase,
    sequences: Sequence[tuple[int, int]],
    block_size: int,
    vocab_size: int,
    first_block: int = 0,
    num_riders: int = 0,
) -> Batch:
    """A step of arbitrary tokens; `sequences`: tokens in the cache before the step and in it.

    Each sequence has as many blocks as the longest, one after the other from `first_block` on.
    """
    longest = max(before + count for before, count in sequences)
    num_blocks = blocks_of(longest, block_size)
    requests = []
    for index, (before, count) in enumerate(sequences):
        tokens = np.arange(before + count, dtype=np.int32) * 97 % vocab_size
        request = Request(f"rehearsal-{index}", tokens, SamplingParams(temperature=0.0))
        first = first_block + index * num_blocks
        request.block_table.ids += range(first, first + num_blocks)
        requests.append(request)
    num_new = [count for _, count in sequences]
    return Batch(
        phase=phase,
        requests=tuple(requests),
        starts=[before for before, _ in sequences],
        num_new=num_new,
        num_tokens=sum(num_new),
        logit_rows=(np.cumsum(num_new) - 1).tolist(),
        sampled=range(len(requests)),
        wants=[ARGMAX] * len(requests),
        num_riders=num_riders,
    )


def blocks_of(num_tokens: int, block_size: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-num_tokens // block_size)
