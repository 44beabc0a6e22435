"""Who owns which block of the KV cache: a pool of block ids and one table of them per request.

A block holds `block_size` tokens of every layer and KV head.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import count

_stamps = count(1)


class BlockTable:
    """The blocks of one request in token order: token t lives in block `ids[t // block_size]`.

    `stamp` is the table's alone, and another one after each `clear`: while it stays, `ids` only
    grows.
    """

    __slots__ = ("ids", "stamp")

    def __init__(self) -> None:
        self.clear()

    @property
    def num_blocks(self) -> int:
        return len(self.ids)

    def clear(self) -> None:
        self.ids: list[int] = []
        self.stamp = next(_stamps)


class BlockPool:
    """All blocks of the cache. Ask `can_allocate`, then `allocate`; give back with `free`.

    Both work on a table, so that sharing blocks between tables (a prefix cache) would stay the
    pool's own affair. The block freed last is handed out first: its pages are the warmest.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert min(num_blocks, block_size) > 0, (num_blocks, block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # taken from the end; block 0 first
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

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
            block_ids = self._free[: -num_missing - 1 : -1]
            del self._free[-num_missing:]
            self._used.update(block_ids)
            table.ids += block_ids

    def free(self, table: BlockTable) -> None:
        """Take back every block of `table` and empty it."""
        assert self._used.issuperset(table.ids), f"freed twice: {table.ids}"
        self._used.difference_update(table.ids)
        self._free += reversed(table.ids)
        table.clear()

    def check_integrity(self, tables: Iterable[BlockTable]) -> None:
        """Assert that every block is free or in exactly one of `tables`, all the live ones."""
        held = [block_id for table in tables for block_id in table.ids]
        owners, every = Counter([*held, *self._free]), set(range(self.num_blocks))
        assert owners.keys() <= every, f"ids out of range: {owners.keys() - every}"
        assert owners.keys() >= every, f"lost: {every - owners.keys()}"
        assert owners.total() == self.num_blocks, f"owned twice: {owners - Counter(every)}"
        assert self._used == set(held), "use marks disagree"
