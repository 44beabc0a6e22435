"""The blocks of an executor's KV cache: copied, saved and loaded whole, whatever their type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from sandwich.executor.base import Batch
from sandwich.requests.block_store import Row


class CachedBlocks:
    """What an executor with a KV cache can do with its blocks; bits stay as they are.

    _cache: arrays (layers, kv_heads, num_blocks, ...) by name.
    """

    _cache: Mapping[str, npt.NDArray[Any]]

    @property
    def block_nbytes(self) -> int:
        """Of one block of the KV cache."""
        return sum(array[:, :, 0].nbytes for array in self._cache.values())

    def save_block(self, block_id: int, row: Row) -> None:
        """Copy the bytes of a block that no step in flight writes to `row`."""
        at = 0
        for array in self._cache.values():
            part = array[:, :, block_id]
            row[at : at + part.nbytes].view(part.dtype).reshape(part.shape)[:] = part
            at += part.nbytes

    def load_block(self, block_id: int, row: Row) -> None:
        """Copy them back, to any block."""
        at = 0
        for array in self._cache.values():
            part = array[:, :, block_id]
            part[:] = row[at : at + part.nbytes].view(part.dtype).reshape(part.shape)
            at += part.nbytes

    def _copy_blocks(self, batch: Batch) -> None:
        """Make the copies that come before anything else of a batch."""
        for source, target in batch.copies:
            for array in self._cache.values():
                array[:, :, target] = array[:, :, source]
