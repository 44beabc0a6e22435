"""Who holds which block of the KV cache: block tables, and a pool that counts the holders.

A block has `block_size` tokens of every layer and KV head. Several tables may hold one block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandwich.requests.prefix_tree import Node

_stamps = count(1)


class BlockTable:
    """The blocks of one request in token order: token t lives in block `ids[t // block_size]`.

    `stamp` is the table's alone, and another one after each `clear` or `replace`: while it stays,
    `ids` only grows. `nodes` are those of its first blocks that can be found by their tokens.
    """

    __slots__ = ("ids", "nodes", "stamp")

    def __init__(self) -> None:
        self.clear()

    @property
    def num_blocks(self) -> int:
        return len(self.ids)

    def clear(self) -> None:
        self.ids: list[int] = []
        self.nodes: list[Node] = []
        self.stamp = next(_stamps)

    def replace(self, index: int, block_id: int) -> None:
        """Use another block, with the same content, in place of number `index`."""
        self.ids[index] = block_id
        self.stamp = next(_stamps)


class BlockPool:
    """All blocks of the cache, each with the number of those who hold it.

    `take` gives blocks that nobody holds, `hold` adds a holder, `release` takes one away. What
    becomes of a block without holders is the caller's decision: `put_back` lets it be taken again.
    The block put back last is handed out first: its pages are the warmest.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        assert min(num_blocks, block_size) > 0, (num_blocks, block_size)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_holders = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # taken from the end; block 0 first

    @property
    def num_free(self) -> int:
        """Blocks that `take` can give."""
        return len(self._free)

    @property
    def num_token_slots(self) -> int:
        return self.num_blocks * self.block_size

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size)

    def take(self, num_blocks: int) -> list[int]:
        """So many free blocks, each with one holder; there must be enough."""
        assert num_blocks <= self.num_free, f"{num_blocks} blocks wanted, {self.num_free} free"
        if num_blocks == 0:
            return []
        block_ids = self._free[: -num_blocks - 1 : -1]
        del self._free[-num_blocks:]
        for block_id in block_ids:
            self.num_holders[block_id] = 1
        return block_ids

    def hold(self, block_id: int) -> None:
        """One holder more."""
        self.num_holders[block_id] += 1

    def release(self, block_id: int) -> bool:
        """One holder less; whether nobody is left."""
        assert self.num_holders[block_id] > 0, f"block {block_id} has no holder to release it"
        self.num_holders[block_id] -= 1
        return self.num_holders[block_id] == 0

    def put_back(self, block_id: int) -> None:
        """Make a block that nobody holds free."""
        assert self.num_holders[block_id] == 0, f"block {block_id} is held"
        self._free.append(block_id)

    def check_integrity(self, held: Iterable[int], kept: Iterable[int]) -> None:
        """Assert that each block is free, or has as many holders as `held` names it, or is one of
        `kept`, which nobody holds and which are not free.
        """
        holders, every = Counter(held), set(range(self.num_blocks))
        apart = [*self._free, *kept]
        assert holders.keys() <= every, f"ids out of range: {holders.keys() - every}"
        lost = every - holders.keys() - set(apart)
        assert not lost, f"lost: {lost}"
        twice = Counter([*apart, *holders]) - Counter(every)
        assert not twice, f"owned twice: {twice}"
        counted = {id_: number for id_, number in enumerate(self.num_holders) if number}
        assert counted == holders, "the counts of holders disagree"
