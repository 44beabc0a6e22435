"""From "these requests, this many tokens each" to the flat arrays of a batch.

Must not know: why these requests were chosen. Their block tables already reach far enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codegen.spec import Phase
from sandwich.executor.base import Batch, Int32Array
from sandwich.request import Request


def wanted_rows(request: Request, end: int) -> range:
    """Positions in [num_computed, end) whose logits predict a prompt token that wants a logprob."""
    if not request.num_wanted_prompt_logprobs:
        return range(0)
    first = max(request.num_computed, len(request.prompt_logprobs))
    return range(first, min(end, request.num_prompt_tokens - 1))


def build_batch(
    phase: Phase,
    requests: Sequence[Request],
    num_new: Sequence[int],
    block_size: int,
    num_riders: int = 0,
) -> Batch:
    """Batch of the next `num_new[i] >= 1` tokens of each request; the first `num_riders` decode."""
    starts = np.array([request.num_computed for request in requests], np.int32)
    lengths = np.array(num_new, np.int32)
    context_lens = starts + lengths
    query_starts = np.zeros(len(requests) + 1, np.int32)
    np.cumsum(lengths, out=query_starts[1:])
    ends = context_lens.tolist()

    token_ids = np.concatenate(
        [r.token_ids[r.num_computed : end] for r, end in zip(requests, ends, strict=True)]
    )
    shifts = np.repeat(starts - query_starts[:-1], lengths)
    positions = np.arange(len(token_ids), dtype=np.int32) + shifts
    block_tables = _block_tables(requests, context_lens, block_size)
    sequences = np.repeat(np.arange(len(requests)), lengths)
    blocks, offsets = np.divmod(positions, np.int32(block_size))
    slot_mapping = block_tables[sequences, blocks] * np.int32(block_size) + offsets

    rows: list[int] = []
    sampled: list[int] = []
    for index, (request, end) in enumerate(zip(requests, ends, strict=True)):
        first_row = int(query_starts[index]) - request.num_computed
        wanted = [*wanted_rows(request, end), *([end - 1] if end == request.num_tokens else [])]
        rows += [first_row + position for position in wanted]
        sampled += [index] * len(wanted)

    return Batch(
        phase=phase,
        requests=tuple(requests),
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slot_mapping,
        query_starts=query_starts,
        context_lens=context_lens,
        block_tables=block_tables,
        logit_rows=np.array(rows, np.int32),
        sampled=tuple(sampled),
        num_riders=num_riders,
    )


def decode_batch(requests: Sequence[Request], block_size: int) -> Batch:
    """Batch of the last token of each request, all that its cache lacks.

    The same as `build_batch` with one token each, in a third of the time: a decode step waits for
    this, and 10 us are to be felt where a step takes 200.
    """
    count = len(requests)
    positions = [request.num_computed for request in requests]
    context_lens = np.array(positions, np.int32) + np.int32(1)
    slots = [
        int(request.block_table.ids[position // block_size]) * block_size + position % block_size
        for request, position in zip(requests, positions, strict=True)
    ]
    starts = np.arange(count + 1, dtype=np.int32)
    return Batch(
        phase=Phase.DECODE,
        requests=tuple(requests),
        token_ids=np.array([r.token_ids[at] for r, at in zip(requests, positions, strict=True)]),
        positions=np.array(positions, np.int32),
        slot_mapping=np.array(slots, np.int32),
        query_starts=starts,
        context_lens=context_lens,
        block_tables=_block_tables(requests, context_lens, block_size),
        logit_rows=starts[:-1],
        sampled=tuple(range(count)),
    )


def _block_tables(
    requests: Sequence[Request], context_lens: Int32Array, block_size: int
) -> Int32Array:
    num_blocks = -(-context_lens // block_size)
    tables = np.zeros((len(requests), int(num_blocks.max())), np.int32)
    for row, request, count in zip(tables, requests, num_blocks.tolist(), strict=True):
        row[:count] = request.block_table.ids[:count]
    return tables
