"""Blocks of the KV cache by what is in them: a tree in which a path from a root spells a prompt.

A node is a block: the tokens that are computed in it, behind those of its parents. Prompts that
begin alike share a path, compared token by token, so that no two prompts can be mistaken for each
other. Every salt has a root of its own. Blocks that nobody holds stay until they are evicted, leaf
by leaf, in the order of GreedyDual (Young, "The k-server dual and loose competitiveness for
paging", Algorithmica 1994): by when they were last used and by what it would cost to compute them
again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

import numpy as np
import numpy.typing as npt

_TOKEN_BYTES: Final = np.dtype(np.int32).itemsize
_MIN_QUEUE: Final = 64  # entries of the queue below which old ones are not swept out
TokenCost = Callable[[int], float]  # position -> what it costs to compute a token there


class Node:
    """A block with its tokens, int32 one after the other; a root has no block and a salt instead.

    Children are in the order of their tokens. Only a full block has children.
    """

    __slots__ = (
        "block_id",
        "children",
        "depth",
        "entry",
        "is_idle",
        "key",
        "keys",
        "parent",
        "tokens",
        "worth",
    )

    def __init__(self, parent: Node | None, tokens: bytes, block_id: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block_id = block_id
        self.depth: int = -1 if parent is None else parent.depth + 1  # blocks in front of it
        self.keys: list[bytes] = []
        self.children: list[Node] = []
        self.key = b""  # by which a store knows the block, once somebody asked
        self.is_idle = False  # nobody holds the block
        self.worth = 0.0  # the least is evicted first
        self.entry = 0  # its number in the queue of the tree; 0: it is not there

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) // _TOKEN_BYTES

    def child(self, tokens: bytes) -> Node | None:
        """The child with just these tokens."""
        at = bisect_left(self.keys, tokens)
        return self.children[at] if self.keys[at : at + 1] == [tokens] else None

    def closest(self, tokens: bytes) -> tuple[Node | None, int]:
        """The child that begins most like `tokens`, and how many tokens they have in common.

        In sorted order it is a neighbour of the place where `tokens` would be.
        """
        at = bisect_left(self.keys, tokens)
        best, most = None, 0
        for index in range(max(0, at - 1), min(at + 1, len(self.keys))):
            length = common_tokens(self.keys[index], tokens)
            if length > most:
                best, most = self.children[index], length
        return best, most


class PrefixTree:
    """Nodes of computed blocks. Idle ones are those whose blocks nobody holds.

    Whoever holds a node's block holds those of its parents too, so below an idle node all are idle.
    """

    def __init__(self, block_size: int, token_cost: TokenCost) -> None:
        self.num_idle = 0
        self.node_of: dict[int, Node] = {}  # by block id
        self._block_size = block_size
        self._token_cost = token_cost
        self._roots: dict[bytes, Node] = {}
        self._clock = 0.0  # worth of the node evicted last
        self._idle_leaves: list[tuple[float, int, Node]] = []  # a heap; old entries stay in it
        self._entries = count(1)

    def find(self, salt: str, tokens: npt.NDArray[np.int32]) -> tuple[list[Node], int]:
        """The path of the longest beginning of `tokens` that is there, and how many tokens of its
        last node belong to it: the other nodes belong to it whole.
        """
        node, path, length = self._roots.get(salt.encode()), [], 0
        data, size = tokens.tobytes(), self._block_size * _TOKEN_BYTES
        for at in range(0, len(data), size):
            if node is None:
                break
            node, shared = node.closest(data[at : at + size])
            if node is not None:
                path.append(node)
                length = shared
            if shared < self._block_size:
                break
        return path, length

    def root(self, salt: str) -> Node:
        """The node above all first blocks of a salt."""
        key = salt.encode()
        if key not in self._roots:
            self._roots[key] = Node(None, key, -1)
        return self._roots[key]

    def insert(self, parent: Node, tokens: bytes, block_id: int) -> Node:
        """A new node, whose block is held, for tokens that no child of `parent` begins with."""
        node = Node(parent, tokens, block_id)
        at = bisect_left(parent.keys, tokens)
        parent.keys.insert(at, tokens)
        parent.children.insert(at, node)
        self.node_of[block_id] = node
        return node

    def outdone_by(self, node: Node) -> Node | None:
        """A leaf that has nothing but the beginning of `node`'s tokens, and is of no more use."""
        assert node.parent is not None
        at = bisect_left(node.parent.keys, node.tokens)
        if at == 0 or not node.tokens.startswith(node.parent.keys[at - 1]):
            return None
        return node.parent.children[at - 1]

    def remove(self, node: Node) -> None:
        """Forget a leaf; its block is the caller's."""
        parent = node.parent
        assert parent is not None
        assert not node.children
        at = bisect_left(parent.keys, node.tokens)
        del parent.keys[at], parent.children[at]
        del self.node_of[node.block_id]
        node.entry = 0
        if parent.parent is None:
            if not parent.keys:
                del self._roots[parent.tokens]
        elif parent.is_idle:
            self._queue(parent)

    def set_idle(self, node: Node) -> None:
        """Nobody holds the node's block any more."""
        position = node.depth * self._block_size
        node.worth = self._clock + node.num_tokens * self._token_cost(position)
        node.is_idle = True
        self.num_idle += 1
        self._queue(node)

    def set_held(self, node: Node) -> None:
        """Somebody holds the block of an idle node again."""
        node.is_idle = False
        node.entry = 0
        self.num_idle -= 1

    def evict(self) -> Node:
        """Forget the idle leaf of the least worth. There must be an idle node."""
        while True:
            worth, entry, node = heappop(self._idle_leaves)
            if entry == node.entry:
                break
        self._clock = worth
        self.drop(node)
        return node

    def drop(self, node: Node) -> int:
        """Forget an idle leaf; its block, which is free then."""
        self.num_idle -= 1
        self.remove(node)
        return node.block_id

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents first."""
        pending = [child for root in self._roots.values() for child in root.children]
        while pending:
            node = pending.pop()
            yield node
            pending += node.children

    def check_integrity(self, num_holders: list[int]) -> None:
        """Assert that the tree is whole, `num_holders` being those of each block."""
        nodes = list(self.nodes())
        assert self.node_of == {node.block_id: node for node in nodes}, "blocks and nodes disagree"
        queued = {id(node) for _, entry, node in self._idle_leaves if entry == node.entry}
        idle = [node for node in nodes if num_holders[node.block_id] == 0]
        assert len(idle) == self.num_idle, "idle nodes are miscounted"
        assert queued == {id(node) for node in idle if not node.children}, "an idle leaf is lost"
        for node in nodes:
            assert node.parent is not None
            assert node.is_idle == (num_holders[node.block_id] == 0)
            assert node.is_idle or not node.parent.is_idle, "held below an idle node"
            assert node.keys == sorted(set(node.keys)) == [each.tokens for each in node.children]
            assert all(each.parent is node for each in node.children)
            assert 0 < node.num_tokens <= self._block_size
            assert node.num_tokens == self._block_size or not node.children

    def _queue(self, node: Node) -> None:
        """Let an idle node be evicted in its turn, if it is a leaf."""
        if node.children:
            return
        node.entry = next(self._entries)
        heappush(self._idle_leaves, (node.worth, node.entry, node))
        if len(self._idle_leaves) > 2 * self.num_idle + _MIN_QUEUE:
            self._idle_leaves = [each for each in self._idle_leaves if each[1] == each[2].entry]
            heapify(self._idle_leaves)


def common_tokens(one: bytes, other: bytes) -> int:
    """How many tokens two strings of tokens have in common before they differ or one ends."""
    length = min(len(one), len(other))
    differing = int.from_bytes(one[:length]) ^ int.from_bytes(other[:length])
    return (length - (differing.bit_length() + 7) // 8) // _TOKEN_BYTES
