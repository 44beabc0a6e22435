"""The KV cache as the scheduler sees it: room for requests, and what of them is computed already.

What a request has computed can be found by the tokens. The next one that begins alike shares the
whole blocks and gets a copy of the block in which the two part, so that nobody writes to a block
that others read. Blocks whose requests have ended stay until their room is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from sandwich.requests.block_store import BlockStore, block_key
from sandwich.requests.blocks import BlockPool, BlockTable
from sandwich.requests.prefix_tree import Node, PrefixTree, TokenCost
from sandwich.requests.request import Request

Int32Array = npt.NDArray[np.int32]
Copies = list[tuple[int, int]]  # of blocks: source, target


class Prefix(NamedTuple):
    """The beginning of a prompt that need not be computed: blocks to share, then the keys of those
    to restore from the store, or the block whose first `num_copied` tokens are to be copied.
    """

    shared: tuple[Node, ...] = ()
    restored: tuple[bytes, ...] = ()
    copied: Node | None = None
    num_copied: int = 0


NO_PREFIX: Final = Prefix()


def num_common_tokens(one: Int32Array, other: Int32Array) -> int:
    """How many tokens two sequences have in common before they differ or one ends."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length


def even_cost(position: int) -> float:
    """Every token costs as much as any other."""
    return 1.0


class KvCache:
    """Ask for `room`, then `admit`; `can_grow`, then `grow`. `publish` what has been computed, and
    `free` the table in the end. Without `shares_prefixes` nothing can be found again.

    token_cost: seconds, or any other unit, that it takes to compute a token again, by position.
    store: where evicted blocks go, and come back from where that is cheaper.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        shares_prefixes: bool = True,
        token_cost: TokenCost = even_cost,
        store: BlockStore | None = None,
    ) -> None:
        self._pool = BlockPool(num_blocks, block_size)
        self._tree = PrefixTree(block_size, token_cost)
        self._block_size = block_size
        self._token_cost = token_cost
        self._store = store
        self.shares_prefixes = shares_prefixes

    @property
    def num_token_slots(self) -> int:
        return self._pool.num_token_slots

    @property
    def num_available(self) -> int:
        """Blocks that are free, or idle and can be evicted."""
        return self._pool.num_free + self._tree.num_idle

    @property
    def num_used(self) -> int:
        """Blocks that requests hold."""
        return self._pool.num_blocks - self.num_available

    def num_missing(self, table: BlockTable, num_tokens: int) -> int:
        """Blocks that `table` lacks to hold `num_tokens` tokens."""
        return max(0, self._pool.blocks_of(num_tokens) - table.num_blocks)

    # ---- admission ----

    def find(self, request: Request) -> Prefix:
        """What of the request's tokens is in the cache and need not be computed."""
        if not self.shares_prefixes:
            return NO_PREFIX
        tokens = request.token_ids[: request.num_skippable_tokens]
        nodes, length = self._tree.find(request.cache_salt, tokens)
        shared = tuple(nodes if length == self._block_size else nodes[:-1])
        if restored := self._restorable(request.cache_salt, tokens, shared):
            return Prefix(shared, restored)
        return (
            Prefix(shared) if len(shared) == len(nodes) else Prefix(shared, (), nodes[-1], length)
        )

    def _restorable(
        self, salt: str, tokens: Int32Array, shared: tuple[Node, ...]
    ) -> tuple[bytes, ...]:
        """Keys of the blocks behind the shared ones that the store has, if to copy them back takes
        less time than to compute them.
        """
        size = self._block_size
        start = len(shared) * size
        if self._store is None or start + size > len(tokens):
            return ()
        if self._token_cost(start) * size < self._store.seconds_per_block:
            return ()
        keys: list[bytes] = []
        key = self._key(shared[-1]) if shared else salt.encode()
        for at in range(start, len(tokens) - size + 1, size):
            key = block_key(key, tokens[at : at + size].tobytes())
            if key not in self._store:
                break
            keys.append(key)
        return tuple(keys)

    def _key(self, node: Node) -> bytes:
        """Of a full block, for the store."""
        path = []
        while not node.key and node.parent is not None:
            path.append(node)
            node = node.parent
        key = node.key or node.tokens  # a root's tokens are its salt
        for each in reversed(path):
            each.key = key = block_key(key, each.tokens)
        return key

    def _evict(self) -> None:
        """Free the block that is worth least; the store keeps what is in it, if it is full."""
        node = self._tree.evict()
        if self._store is not None and node.num_tokens == self._block_size:
            self._store.save(self._key(node), node.block_id)
        self._pool.put_back(node.block_id)

    def num_tokens(self, prefix: Prefix) -> int:
        """Tokens of a prefix."""
        num_blocks = len(prefix.shared) + len(prefix.restored)
        return num_blocks * self._block_size + prefix.num_copied

    def room(self, request: Request, num_spare: int = 0) -> Prefix | None:
        """The longest prefix behind which there is room for all its tokens and for `num_spare`
        blocks; None if there is no room at all. A block to be copied takes room of its own.
        """
        prefix = self.find(request)
        num_new = self._pool.blocks_of(request.num_tokens) - len(prefix.shared)
        num_new += sum(node.is_idle for node in prefix.shared) + num_spare
        if prefix.copied is not None and num_new + prefix.copied.is_idle > self.num_available:
            prefix = Prefix(prefix.shared)
        return prefix if num_new <= self.num_available else None

    def admit(self, request: Request, prefix: Prefix) -> Copies:
        """Give it its blocks, in which `prefix` is computed once the copies are made. The source of
        a copy is held until it is given to `release`.
        """
        table = request.block_table
        assert not table.ids
        for node in prefix.shared:
            self._hold(node)
        if prefix.copied:
            self._hold(prefix.copied)
        table.ids += [node.block_id for node in prefix.shared]
        table.nodes += prefix.shared
        slots = [self._store.take(key) for key in prefix.restored] if self._store else []
        self.grow(table, request.num_tokens)
        for slot, block_id in zip(slots, table.ids[len(prefix.shared) :], strict=False):
            assert self._store is not None
            self._store.restore(slot, block_id)
        request.num_computed = self.num_tokens(prefix)
        if prefix.copied is None:
            return []
        return [(prefix.copied.block_id, table.ids[len(prefix.shared)])]

    def can_grow(self, table: BlockTable, num_tokens: int) -> bool:
        """Whether `table` can grow to `num_tokens` tokens."""
        return self.num_missing(table, num_tokens) <= self.num_available

    def grow(self, table: BlockTable, num_tokens: int) -> None:
        """Grow `table` to hold `num_tokens` tokens; only after `can_grow` said yes."""
        if num_missing := self.num_missing(table, num_tokens):
            while self._pool.num_free < num_missing and self._tree.num_idle:
                self._evict()
            table.ids += self._pool.take(num_missing)

    def spare_block(self) -> int:
        """A block that nobody holds and whose content is forgotten, until the next `grow`."""
        if not self._pool.num_free:
            self._evict()
        [block_id] = self._pool.take(1)
        self._pool.release(block_id)
        self._pool.put_back(block_id)
        return block_id

    def free(self, request: Request, is_sound: bool = True) -> None:
        """Take back its blocks; what is computed in them can still be found, unless a step failed
        that was to write to them.
        """
        if is_sound:
            self.publish(request, with_tail=True)
        table = request.block_table
        for block_id in reversed(table.ids):
            self.release(block_id)
        table.clear()

    def release(self, block_id: int) -> None:
        """One holder of the block less."""
        if self._pool.release(block_id):
            if node := self._tree.node_of.get(block_id):
                self._tree.set_idle(node)
            else:
                self._pool.put_back(block_id)

    # ---- content ----

    def publish(self, request: Request, with_tail: bool = False) -> None:
        """Let the tokens that the request has computed be found; `with_tail`: not only those of
        full blocks.

        A full block that is there already takes the place of the request's own, whose content is
        the same to the bit.
        """
        if not self.shares_prefixes or not request.block_table.ids:
            return
        nodes, size = request.block_table.nodes, self._block_size
        num_full, num_in_tail = divmod(request.num_computed, size)
        while self._num_full(nodes) < num_full:
            self._publish_block(request, self._num_full(nodes))
        if with_tail and num_in_tail:
            self._publish_tail(request, num_full, num_in_tail)

    def _num_full(self, nodes: list[Node]) -> int:
        has_tail = bool(nodes) and nodes[-1].num_tokens < self._block_size
        return len(nodes) - has_tail

    def _publish_block(self, request: Request, index: int) -> None:
        table, size = request.block_table, self._block_size
        self._withdraw_tail(table, index)
        tokens = request.token_ids[index * size : (index + 1) * size].tobytes()
        parent = self._parent(request, index)
        node = parent.child(tokens)
        if node is None:
            node = self._insert(parent, tokens, table.ids[index])
        else:
            self._hold(node)
            self.release(table.ids[index])
            table.replace(index, node.block_id)
        table.nodes.append(node)

    def _publish_tail(self, request: Request, index: int, num_tokens: int) -> None:
        table, start = request.block_table, index * self._block_size
        tokens = request.token_ids[start : start + num_tokens].tobytes()
        if self._parent(request, index).closest(tokens)[1] < num_tokens:
            self._withdraw_tail(table, index)
            parent = self._parent(request, index)
            table.nodes.append(self._insert(parent, tokens, table.ids[index]))

    def _parent(self, request: Request, index: int) -> Node:
        """The node above that of the request's block `index`."""
        if index:
            return request.block_table.nodes[index - 1]
        return self._tree.root(request.cache_salt)

    def _withdraw_tail(self, table: BlockTable, index: int) -> None:
        """Forget the tail that was published of a block that has more tokens by now."""
        if len(table.nodes) > index:
            self._tree.remove(table.nodes.pop())

    def _insert(self, parent: Node, tokens: bytes, block_id: int) -> Node:
        node = self._tree.insert(parent, tokens, block_id)
        outdone = self._tree.outdone_by(node)
        if outdone is not None and outdone.is_idle:
            self._pool.put_back(self._tree.drop(outdone))
        return node

    def _hold(self, node: Node) -> None:
        if node.is_idle:
            self._tree.set_held(node)
        self._pool.hold(node.block_id)

    def check_integrity(self, requests: Iterable[Request], copies: Iterable[int] = ()) -> None:
        """Assert that every block is free, idle or held by `requests`, all that hold any, or
        held to be copied; and that the tree says what is in them.
        """
        listed = list(requests)
        held = [id_ for request in listed for id_ in request.block_table.ids]
        kept = [node.block_id for node in self._tree.nodes() if node.is_idle]
        self._pool.check_integrity([*held, *copies], kept)
        self._tree.check_integrity(self._pool.num_holders)
        if self._store is not None:
            self._store.check_integrity()
        for request in listed:
            nodes, ids = request.block_table.nodes, request.block_table.ids
            assert [node.block_id for node in nodes] == ids[: len(nodes)]
            data = b"".join(node.tokens for node in nodes)
            assert request.token_ids[: request.num_computed].tobytes().startswith(data)
            assert all(node.parent is before for before, node in pairwise(nodes))
