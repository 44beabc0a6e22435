"""The block pool: exact counts of holders, and a check that notices every mistake."""

from __future__ import annotations

import pytest

from sandwich.requests.blocks import BlockPool, BlockTable


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"), [(0, 0), (1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (40, 10)]
)
def test_tokens_need_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    pool = BlockPool(10, 4)
    assert pool.blocks_of(num_tokens) == num_blocks
    assert pool.take(num_blocks) == list(range(num_blocks))
    assert pool.num_free == 10 - num_blocks


def test_the_last_block_can_be_had_and_no_more() -> None:
    pool = BlockPool(3, 4)
    pool.take(2)
    with pytest.raises(AssertionError, match="2 blocks wanted, 1 free"):
        pool.take(2)
    assert pool.take(1) == [2]


def test_the_block_put_back_last_is_handed_out_first() -> None:
    pool = BlockPool(6, 4)
    taken = pool.take(4)
    for block_id in (taken[2], taken[0]):
        assert pool.release(block_id)
        pool.put_back(block_id)
    assert pool.take(3) == [taken[0], taken[2], 4]


def test_a_block_is_anybody_s_only_when_the_last_holder_has_released_it() -> None:
    pool = BlockPool(2, 4)
    [block_id] = pool.take(1)
    pool.hold(block_id)
    assert not pool.release(block_id)
    with pytest.raises(AssertionError, match="is held"):
        pool.put_back(block_id)
    assert pool.release(block_id)
    with pytest.raises(AssertionError, match="no holder"):
        pool.release(block_id)


def test_the_integrity_check_finds_lost_and_doubly_owned_blocks() -> None:
    pool = BlockPool(5, 4)
    pool.take(3)
    pool.hold(0)
    pool.release(2)
    pool.check_integrity(held=[0, 0, 1], kept=[2])
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity(held=[0, 0, 1], kept=[])
    with pytest.raises(AssertionError, match="owned twice"):
        pool.check_integrity(held=[0, 0, 1, 2], kept=[2])
    with pytest.raises(AssertionError, match="counts of holders"):
        pool.check_integrity(held=[0, 1], kept=[2])


def test_a_table_has_another_stamp_when_what_it_had_may_have_changed() -> None:
    table = BlockTable()
    stamps = [table.stamp]
    table.ids += [3, 4]
    assert table.stamp == stamps[0]
    table.replace(1, 7)
    assert table.ids == [3, 7]
    stamps.append(table.stamp)
    table.clear()
    assert table.num_blocks == 0
    assert len({*stamps, table.stamp, BlockTable().stamp}) == 4
