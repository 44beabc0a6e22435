"""What the slow executors read from logits, block by block as the programs do it, in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codegen import reference
from sandwich.executor.base import Batch, Float32Array, Scores


def read_rows(
    batch: Batch, most: int, logits_of: Callable[[slice], Float32Array]
) -> tuple[Float32Array, Scores | None]:
    """The logits of the batch's last wanted rows, `most` of them, and the scores of all.

    logits_of: called for blocks of rows in order, all but the first of `most`; it may overwrite
    what it gave before.
    """
    count = len(batch.logit_rows)
    ends = range(count, 0, -most)[::-1] or (0,)
    is_scored = any(want.is_scored for want in batch.wants)
    parts = []
    for end in ends:
        rows = slice(max(end - most, 0), end)
        logits = logits_of(rows)
        if is_scored:
            wants = batch.wants[rows]
            targets, num_tops = [w.target for w in wants], [w.num_top for w in wants]
            parts.append(reference.scores(logits, targets, num_tops))
    if not is_scored:
        return logits, None
    totals, chosen, ranks, top_ids, top_logits = map(np.concatenate, zip(*parts, strict=True))
    return logits, Scores(totals.tolist(), chosen.tolist(), ranks.tolist(), top_ids, top_logits)
