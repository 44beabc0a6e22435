"""Who owns which block of the KV cache: a pool of block ids and one table of them per request.

A block holds `block_size` tokens of every layer and KV head. Must not know: where the bytes are,
what is in them, which request is more important.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class BlockTable:
    """The blocks of one request in token order: token t lives in block `ids[t // block_size]`."""

    __slots__ = ("_ids", "num_blocks")

    def __init__(self) -> None:
        self._ids = np.empty(8, np.int32)
        self.num_blocks = 0

    @property
    def ids(self) -> npt.NDArray[np.int32]:
        """(num_blocks,) a view, valid until the table changes."""
        return self._ids[: self.num_blocks]

    def extend(self, block_ids: npt.NDArray[np.int32]) -> None:
        num_blocks = self.num_blocks + len(block_ids)
        if num_blocks > len(self._ids):
            grown = np.empty(max(num_blocks, 2 * len(self._ids)), np.int32)
            grown[: self.num_blocks] = self.ids
            self._ids = grown
        self._ids[self.num_blocks : num_blocks] = block_ids
        self.num_blocks = num_blocks

    def clear(self) -> None:
        self.num_blocks = 0


class BlockPool:
    """All blocks of the cache. Ask `can_allocate`, then `allocate`; give back with `free`.

    Both work on a table, so that sharing blocks between tables (a prefix cache) would stay the
    pool's own affair. The block freed last is handed out first: its pages are the warmest.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert min(num_blocks, block_size) > 0, (num_blocks, block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        # [0, num_free) of _stack are the free ids, taken from the top; block 0 first.
        self._stack = np.arange(num_blocks - 1, -1, -1, dtype=np.int32)
        self._is_used = np.zeros(num_blocks, np.bool_)
        self.num_free = num_blocks

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    @property
    def num_token_slots(self) -> int:
        return self.num_blocks * self.block_size

    def num_missing(self, table: BlockTable, num_tokens: int) -> int:
        """Blocks that `table` lacks to hold `num_tokens` tokens."""
        return max(0, -(-num_tokens // self.block_size) - table.num_blocks)

    def can_allocate(self, table: BlockTable, num_tokens: int, num_spare: int = 0) -> bool:
        """Whether `table` can grow to `num_tokens` tokens and leave `num_spare` blocks free."""
        return self.num_missing(table, num_tokens) + num_spare <= self.num_free

    def allocate(self, table: BlockTable, num_tokens: int) -> None:
        """Grow `table` to hold `num_tokens` tokens; only after `can_allocate` said yes."""
        num_missing = self.num_missing(table, num_tokens)
        assert num_missing <= self.num_free, f"{num_missing} blocks wanted, {self.num_free} free"
        if num_missing:
            block_ids = self._stack[self.num_free - num_missing : self.num_free][::-1]
            self.num_free -= num_missing
            self._is_used[block_ids] = True
            table.extend(block_ids)

    def free(self, table: BlockTable) -> None:
        """Take back every block of `table` and empty it."""
        block_ids = table.ids
        assert self._is_used[block_ids].all(), f"freed twice: {block_ids}"
        self._is_used[block_ids] = False
        self._stack[self.num_free : self.num_free + len(block_ids)] = block_ids[::-1]
        self.num_free += len(block_ids)
        table.clear()

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Assert that every block is free or in exactly one of `tables`, all the live ones."""
        held = np.concatenate([np.empty(0, np.int32), *(table.ids for table in tables)])
        free = self._stack[: self.num_free]
        owners = np.bincount(np.concatenate([held, free]), minlength=self.num_blocks)
        assert len(owners) == self.num_blocks, f"ids out of range: {held[held >= self.num_blocks]}"
        assert owners.min() == 1, f"lost: {np.flatnonzero(owners == 0)}"
        assert owners.max() == 1, f"owned twice: {np.flatnonzero(owners > 1)}"
        assert np.array_equal(np.flatnonzero(self._is_used), np.sort(held)), "use marks disagree"
