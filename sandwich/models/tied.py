"""Whether the LM head of a checkpoint is its embedding, as `tie_word_embeddings` claims.

Some checkpoints say that the two are tied and hold an `lm_head.weight` of their own all the same.
The values in the file decide, as in transformers 5: a head that differs is the model's head.
"""

from __future__ import annotations

import logging
from typing import Final

import numpy as np

from sandwich.checkpoint.source import Checkpoint, ModelSource

EMBEDDING: Final = "model.embed_tokens.weight"
LM_HEAD: Final = "lm_head.weight"
_BYTES_AT_ONCE: Final = 4 << 20

_log = logging.getLogger(__name__)


def has_own_head(source: ModelSource) -> bool:
    """Whether the checkpoint of `source` holds an LM head that differs from the embedding.

    False for one without tensors. Reads both tensors if both are there. Raises ModelError if
    a file is missing or damaged.
    """
    if not source.has_tensors:
        return False
    checkpoint = source.checkpoint()
    if not {EMBEDDING, LM_HEAD} <= checkpoint.tensors.keys():
        return False
    with checkpoint:
        differs = not _are_equal(checkpoint, EMBEDDING, LM_HEAD)
    if differs:
        _log.warning(
            "%s: config.json ties the LM head to the embedding, but %s differs from %s; "
            "the head in the file is used",
            checkpoint.path,
            LM_HEAD,
            EMBEDDING,
        )
    return differs


def _are_equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    first, second = checkpoint.tensors[one], checkpoint.tensors[other]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if first.dtype not in checkpoint.dtypes:
        return True  # neither can be read, which loading says
    num_rows, row_nbytes = first.shape[0], int(np.prod(first.shape[1:])) * 4
    step = max(1, _BYTES_AT_ONCE // max(1, row_nbytes))
    buffers = [np.empty(step * row_nbytes, np.uint8) for _ in range(2)]
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        rows = checkpoint.read_rows(one, start, stop, buffers[0])
        if rows.tobytes() != checkpoint.read_rows(other, start, stop, buffers[1]).tobytes():
            return False
    return True
