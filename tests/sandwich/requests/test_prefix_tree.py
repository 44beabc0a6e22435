"""The prefix tree: what is found, what is evicted first, and that it agrees with a plain search."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandwich.requests.prefix_tree import Node, PrefixTree, common_tokens

BLOCK = 4


def tree_of(*prompts: Sequence[int], cost: float = 0.0) -> PrefixTree:
    """A tree in which all blocks of the prompts are, held; block ids count up from 0.

    cost: how much dearer a token is than the one before.
    """
    tree = PrefixTree(BLOCK, lambda position: 1 + cost * position)
    for prompt in prompts:
        add(tree, prompt)
    return tree


def add(
    tree: PrefixTree, prompt: Sequence[int], salt: str = "", first_id: int | None = None
) -> list[Node]:
    """The path of a prompt, held; new blocks are numbered on, or from `first_id`."""
    node, path = tree.root(salt), []
    ids = count(max(tree.node_of, default=-1) + 1 if first_id is None else first_id)
    for at in range(0, len(prompt), BLOCK):
        tokens = np.array(prompt[at : at + BLOCK], np.int32).tobytes()
        node = node.child(tokens) or tree.insert(node, tokens, next(ids))
        path.append(node)
    return path


def find(tree: PrefixTree, tokens: Sequence[int], salt: str = "") -> tuple[list[int], int]:
    path, length = tree.find(salt, np.array(tokens, np.int32))
    return [node.block_id for node in path], length


def idle(tree: PrefixTree, path: Sequence[Node]) -> None:
    for node in reversed(path):
        tree.set_idle(node)


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ([], ([], 0)),
        ([9], ([], 0)),
        ([1], ([0], 1)),
        ([1, 2, 3, 4], ([0], 4)),
        ([1, 2, 9, 4, 5], ([0], 2)),
        ([1, 2, 3, 4, 5], ([0, 1], 1)),
        ([1, 2, 3, 4, 5, 6, 9], ([0, 1], 2)),
        ([1, 2, 3, 4, 5, 7, 9], ([0, 2], 2)),
        ([1, 2, 3, 4, 5, 6, 7, 8], ([0, 1], 2)),
    ],
)
def test_the_longest_beginning_is_found_to_the_token(
    tokens: list[int], found: tuple[list[int], int]
) -> None:
    tree = tree_of([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7])
    assert find(tree, tokens) == found


def test_salts_are_worlds_of_their_own() -> None:
    tree = tree_of([1, 2])
    add(tree, [1, 2, 3], salt="a")
    assert find(tree, [1, 2, 3]) == ([0], 2)
    assert find(tree, [1, 2, 3], "a") == ([1], 3)
    assert find(tree, [1, 2, 3], "b") == ([], 0)


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [([], [1], 0), ([1], [1], 1), ([1, 2], [1, 3], 1), ([256, 1], [256, 2], 1), ([1], [257], 0)],
)
def test_common_tokens_are_whole_ones(one: list[int], other: list[int], length: int) -> None:
    data = [np.array(tokens, np.int32).tobytes() for tokens in (one, other)]
    assert common_tokens(*data) == length


token_lists = st.lists(st.integers(0, 2), min_size=1, max_size=14)


@given(prompts=st.lists(token_lists, max_size=6), wanted=token_lists)
def test_what_is_found_is_what_a_plain_search_finds(
    prompts: list[list[int]], wanted: list[int]
) -> None:
    path, length = find(tree_of(*prompts), wanted)
    num_found = max(0, len(path) - 1) * BLOCK + length
    shared = [
        next((i for i, (a, b) in enumerate(zip(p, wanted, strict=False)) if a != b), None)
        for p in prompts
    ]
    lengths = [
        min(len(p), len(wanted)) if same is None else same
        for p, same in zip(prompts, shared, strict=True)
    ]
    # a partial block has no children: behind it nothing is found
    assert num_found == max(lengths, default=0)


def test_leaves_go_first_and_parents_follow() -> None:
    tree = tree_of()
    idle(tree, add(tree, range(12)))
    assert [tree.evict().block_id for _ in range(3)] == [2, 1, 0]
    assert find(tree, [0, 1]) == ([], 0)
    assert tree.num_idle == 0
    tree.check_integrity([])


def test_what_was_used_last_stays_longest() -> None:
    tree = tree_of()
    paths = [add(tree, [start] * 4) for start in (1, 2, 3)]
    for path in paths:
        idle(tree, path)
    assert tree.evict().block_id == 0
    tree.set_held(paths[1][0])
    tree.set_idle(paths[1][0])
    idle(tree, add(tree, [4] * 4))
    assert tree.evict().block_id == 2


def test_what_is_dear_to_compute_outlives_what_was_used_later_but_not_for_ever() -> None:
    tree = tree_of(cost=0.05)
    late = add(tree, range(100, 124))
    idle(tree, late)
    evicted = []
    for start in range(12):
        idle(tree, add(tree, [start] * 4, first_id=1000 + start))
        evicted.append(tree.evict().block_id)
    last = late[-1].block_id
    assert evicted.index(last) > 0
    # the others of its path were nearer to the beginning, and had to wait for it
    assert evicted[evicted.index(last) + 1 :][:1] == [late[-2].block_id]


def test_a_held_block_is_not_evicted_and_neither_are_those_above_it() -> None:
    tree = tree_of()
    first, second = add(tree, range(8)), add(tree, [*range(4), 9, 9, 9, 9])
    tree.set_idle(first[1])
    assert tree.evict().block_id == first[1].block_id
    with pytest.raises(IndexError):
        tree.evict()
    idle(tree, second)
    assert [tree.evict().block_id, tree.evict().block_id] == [
        second[1].block_id,
        second[0].block_id,
    ]


def test_the_queue_does_not_grow_with_the_times_a_block_is_used() -> None:
    tree = tree_of()
    [node] = add(tree, [1, 2])
    for _ in range(1000):
        tree.set_idle(node)
        tree.set_held(node)
    assert len(tree._idle_leaves) < 100


def test_a_leaf_that_only_begins_another_is_outdone() -> None:
    tree = tree_of([1, 2])
    longer = add(tree, [1, 2, 3])[0]
    outdone = tree.outdone_by(longer)
    assert outdone is not None
    assert outdone.block_id == 0
    assert tree.outdone_by(outdone) is None
    assert tree.outdone_by(add(tree, [1, 3])[0]) is None
