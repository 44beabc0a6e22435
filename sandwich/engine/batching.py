"""From "these requests, this many tokens each" to a batch.

Their block tables already reach far enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.spec import Phase
from sandwich.executor.base import Batch
from sandwich.requests.request import Request


def wanted_rows(request: Request, end: int) -> range:
    """Positions in [num_computed, end) whose logits predict a prompt token that wants a logprob."""
    if not request.num_wanted_prompt_logprobs:
        return range(0)
    first = max(request.num_computed, len(request.prompt_logprobs))
    return range(first, min(end, request.num_prompt_tokens - 1))


def build_batch(
    phase: Phase, requests: Sequence[Request], num_new: Sequence[int], num_riders: int = 0
) -> Batch:
    """Batch of the next `num_new[i] >= 1` tokens of each request; the first `num_riders` decode."""
    starts = [request.num_computed for request in requests]
    rows: list[int] = []
    sampled: list[int] = []
    num_tokens = 0
    for index, (request, start) in enumerate(zip(requests, starts, strict=True)):
        end = start + num_new[index]
        for position in wanted_rows(request, end):
            rows.append(num_tokens + position - start)
            sampled.append(index)
        num_tokens += num_new[index]
        if end == request.num_tokens:
            rows.append(num_tokens - 1)
            sampled.append(index)
    return Batch(phase, tuple(requests), starts, num_new, num_tokens, rows, sampled, num_riders)
