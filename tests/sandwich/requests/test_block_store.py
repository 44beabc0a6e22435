"""Evicted blocks: what is kept, what comes back, in memory and on a disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sandwich.errors import ConfigError
from sandwich.executor.cached_blocks import CachedBlocks
from sandwich.requests.block_store import BlockStore, block_key


class Memory(CachedBlocks):
    """Blocks of three layers and two heads: int16 keys and float32 values."""

    def __init__(self, num_blocks: int = 8) -> None:
        numbers = np.arange(3 * 2 * num_blocks * 2).reshape(3, 2, num_blocks, 2)
        self.cache = (numbers.astype(np.int16)[..., :1].copy(), numbers.astype(np.float32))
        self._cache = dict(zip(("keys", "values"), self.cache, strict=True))

    def content(self, block_id: int) -> list[bytes]:
        return [array[:, :, block_id].tobytes() for array in self.cache]


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.mark.parametrize("is_on_disk", [False, True])
def test_a_block_comes_back_to_the_bit_in_another_place(
    memory: Memory, tmp_path: Path, is_on_disk: bool
) -> None:
    store = BlockStore(memory, 3 * memory.block_nbytes, tmp_path if is_on_disk else None)
    contents = [memory.content(i) for i in range(3)]
    for i in range(3):
        store.save(bytes([i]), i)
    for array in memory.cache:
        array[:, :, :3] = -1
    for i in range(3):
        store.restore(store.take(bytes([i])), 5 + i)
        assert memory.content(5 + i) == contents[i]
    assert (store.num_saved, store.num_restored, len(store)) == (3, 3, 0)
    assert store.seconds_per_block > 0
    store.check_integrity()
    assert list(tmp_path.iterdir()) == []


def test_the_oldest_makes_room(memory: Memory) -> None:
    store = BlockStore(memory, 2 * memory.block_nbytes + 1)
    for key in (b"a", b"b", b"a", b"c"):
        store.save(key, 0)
    assert [key in store for key in (b"a", b"b", b"c")] == [True, False, True]
    assert store.num_saved == 3
    store.check_integrity()


def test_while_all_places_are_on_their_way_back_nothing_is_saved(memory: Memory) -> None:
    store = BlockStore(memory, memory.block_nbytes)
    store.save(b"a", 0)
    slot = store.take(b"a")
    store.save(b"b", 1)
    assert b"b" not in store
    store.restore(slot, 2)
    store.save(b"b", 1)
    assert b"b" in store
    store.check_integrity()


def test_keys_tell_prompts_apart() -> None:
    keys = {
        block_key(b"", b"ab"),
        block_key(b"a", b"b"),
        block_key(b"ab", b""),
        block_key(block_key(b"", b"a"), b"b"),
        block_key(block_key(b"", b"b"), b"a"),
    }
    assert len(keys) == 5
    assert block_key(b"a", b"b") == block_key(b"a", b"b")


def test_no_room_is_told(memory: Memory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one block of the KV cache has"):
        BlockStore(memory, memory.block_nbytes - 1)
    with pytest.raises(ConfigError, match="--kv-offload-dir"):
        BlockStore(memory, 1 << 62, tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        BlockStore(memory, 1 << 10, tmp_path / "nowhere")
