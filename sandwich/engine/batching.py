"""From "these requests, this many tokens each" to a batch.

Their block tables already reach far enough.
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.spec import Phase
from sandwich.executor.base import Batch
from sandwich.requests.request import Request
from sandwich.requests.want import Want


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
    num_riders: int = 0,
    copies: Sequence[tuple[int, int]] = (),
) -> Batch:
    """Batch of the next `num_new[i] >= 1` tokens of each request; the first `num_riders` decode."""
    starts = [request.num_computed for request in requests]
    given, chosen = _Rows(), _Rows()
    pooled: list[tuple[int, range]] = []
    num_tokens = 0
    for index, (request, start) in enumerate(zip(requests, starts, strict=True)):
        end = start + num_new[index]
        for position in wanted_rows(request, end):
            following = request.token_ids.item(position + 1)
            want = Want(target=following, num_top=request.params.prompt_logprobs or 0)
            given.add(num_tokens + position - start, index, want)
        if request.pool is not None:
            wanted = request.pool.wanted(start, end, request.num_tokens)
            first = num_tokens - start
            pooled.append((index, range(first + wanted.start, first + wanted.stop)))
        num_tokens += num_new[index]
        if end == request.num_tokens and request.pool is None:
            chosen.add(num_tokens - 1, index, request.want)
    rows = given.rows + chosen.rows
    sampled, wants = given.owners + chosen.owners, given.wants + chosen.wants
    return Batch(
        phase,
        tuple(requests),
        starts,
        num_new,
        num_tokens,
        rows,
        sampled,
        wants,
        num_riders,
        copies,
        pooled,
    )


def decode_batch(requests: Sequence[Request]) -> Batch | None:
    """As `build_batch`, of the one token that each request has not computed; None without any."""
    count = len(requests)
    if not count:
        return None
    return Batch(
        phase=Phase.DECODE,
        requests=tuple(requests),
        starts=[request.num_computed for request in requests],
        num_new=(1,) * count,
        num_tokens=count,
        logit_rows=range(count),
        sampled=range(count),
        wants=[request.want for request in requests],
    )


class _Rows:
    """Token rows whose logits are wanted, whose they are, and what is wanted of them."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.owners: list[int] = []
        self.wants: list[Want] = []

    def add(self, row: int, owner: int, want: Want) -> None:
        self.rows.append(row)
        self.owners.append(owner)
        self.wants.append(want)
