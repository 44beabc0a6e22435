"""The block pool: exact counts, no block lost or owned twice, and a check that would notice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandwich.requests.blocks import BlockPool, BlockTable


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (40, 10)]
)
def test_a_table_gets_exactly_the_blocks_it_lacks(num_tokens: int, num_blocks: int) -> None:
    pool, table = BlockPool(10, 4), BlockTable()
    pool.allocate(table, num_tokens)
    assert table.num_blocks == len(table.ids) == pool.num_used == num_blocks
    assert pool.num_missing(table, num_tokens) == 0
    pool.check_integrity([table])


def test_a_table_grows_block_by_block_and_keeps_its_order() -> None:
    pool, table = BlockPool(100, 4), BlockTable()
    for num_tokens in range(1, 401):
        before = table.ids.copy()
        pool.allocate(table, num_tokens)
        assert table.ids[: len(before)] == before
    assert table.ids == list(range(100))


def test_shrinking_is_not_a_thing_allocate_does() -> None:
    pool, table = BlockPool(4, 4), BlockTable()
    pool.allocate(table, 16)
    pool.allocate(table, 1)
    assert table.num_blocks == 4


def test_the_last_block_can_be_had_and_no_more() -> None:
    pool, first, second = BlockPool(3, 4), BlockTable(), BlockTable()
    pool.allocate(first, 8)
    assert pool.can_allocate(second, 4)
    assert not pool.can_allocate(second, 5)
    assert not pool.can_allocate(second, 4, num_spare=1)
    assert pool.can_allocate(first, 8)
    with pytest.raises(AssertionError, match="2 blocks wanted, 1 free"):
        pool.allocate(second, 5)


def test_the_block_freed_last_is_handed_out_first() -> None:
    pool, first, second, third = BlockPool(6, 4), BlockTable(), BlockTable(), BlockTable()
    pool.allocate(first, 8)
    pool.allocate(second, 8)
    pool.free(first)
    assert first.num_blocks == 0
    pool.allocate(third, 12)
    assert third.ids == [0, 1, 4]
    pool.check_integrity([second, third])


def test_a_block_freed_twice_is_noticed() -> None:
    pool, table, copy = BlockPool(4, 4), BlockTable(), BlockTable()
    pool.allocate(table, 8)
    copy.ids += table.ids
    pool.free(table)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(copy)


def test_the_integrity_check_finds_lost_and_shared_blocks() -> None:
    pool, table, stranger = BlockPool(4, 4), BlockTable(), BlockTable()
    pool.allocate(table, 8)
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity([])
    stranger.ids += table.ids[:1]
    with pytest.raises(AssertionError, match="owned twice"):
        pool.check_integrity([table, stranger])
    pool.check_integrity([table])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60)), max_size=60))
def test_any_order_of_growing_and_freeing_keeps_the_pool_whole(
    orders: list[tuple[int, int]],
) -> None:
    pool, tables = BlockPool(12, 4), [BlockTable() for _ in range(5)]
    for index, num_tokens in orders:
        if num_tokens == 0:
            pool.free(tables[index])
        elif pool.can_allocate(tables[index], num_tokens):
            pool.allocate(tables[index], num_tokens)
        pool.check_integrity(tables)
        assert pool.num_used == sum(table.num_blocks for table in tables)
