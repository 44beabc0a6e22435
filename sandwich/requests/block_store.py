"""The second tier of the prefix cache: evicted blocks, in plain memory or on a disk.

Knows blocks by keys and copies their bytes; what is in them, and whose they are, it must not know.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import OrderedDict
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from sandwich.errors import ConfigError

Row = npt.NDArray[np.uint8]  # the bytes of a block

_LEARNING_RATE: Final = 0.2  # of the time that a restore takes


def block_key(before: bytes, tokens: bytes) -> bytes:
    """The key of a block with these tokens behind a block with the key `before` (or a salt). It is
    a hash of 256 bits, of which no two are the same by accident.
    """
    return blake2b(tokens, key=blake2b(before, digest_size=32).digest(), digest_size=32).digest()


class BlockMemory(Protocol):
    """Where blocks are computed: the executor."""

    @property
    def block_nbytes(self) -> int: ...

    def save_block(self, block_id: int, row: Row) -> None:
        """Copy a block's bytes to `row`."""

    def load_block(self, block_id: int, row: Row) -> None:
        """Copy them back, perhaps to another block."""


class BlockStore:
    """The blocks that were evicted last. What is taken back is no longer here."""

    def __init__(self, memory: BlockMemory, nbytes: int, folder: Path | None = None) -> None:
        """`folder`: on whose disk the bytes lie, in a file without a name; None: in memory.

        Raises ConfigError if there is no room for a block, or for all of them on the disk.
        """
        num_slots = nbytes // memory.block_nbytes
        if num_slots == 0:
            raise ConfigError(
                f"--kv-offload is {nbytes} bytes, but one block of the KV cache has "
                f"{memory.block_nbytes}; give it more"
            )
        shape = (num_slots, memory.block_nbytes)
        self._slots = np.empty(shape, np.uint8) if folder is None else _on_disk(folder, shape)
        self._memory = memory
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # the oldest first
        self._free = list(range(num_slots))
        self.seconds_per_block = 0.0  # that a restore takes, of late
        self.num_saved = 0
        self.num_restored = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._slot_of

    def __len__(self) -> int:
        return len(self._slot_of)

    def save(self, key: bytes, block_id: int) -> None:
        """Keep a block that is about to be evicted, in the place of the oldest if there is none."""
        if key in self._slot_of:
            self._slot_of.move_to_end(key)
            return
        if self._free:
            slot = self._free.pop()
        elif self._slot_of:
            _, slot = self._slot_of.popitem(last=False)
        else:
            return  # all are being restored
        self._memory.save_block(block_id, self._slots[slot])
        self._slot_of[key] = slot
        self.num_saved += 1

    def take(self, key: bytes) -> int:
        """The slot of a block that is to be restored; nothing else comes into it until then."""
        return self._slot_of.pop(key)

    def restore(self, slot: int, block_id: int) -> None:
        """Copy what was taken to a block of the cache."""
        started = time.perf_counter()
        self._memory.load_block(block_id, self._slots[slot])
        seconds = time.perf_counter() - started
        self._free.append(slot)
        self.num_restored += 1
        rate = _LEARNING_RATE if self.num_restored > 1 else 1.0
        self.seconds_per_block += rate * (seconds - self.seconds_per_block)

    def check_integrity(self) -> None:
        """Assert that each slot is free or has one key; to be called while nothing is taken."""
        assert sorted([*self._free, *self._slot_of.values()]) == list(range(len(self._slots)))


def _on_disk(folder: Path, shape: tuple[int, int]) -> Row:
    nbytes = shape[0] * shape[1]
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, nbytes)  # later, a full disk would end the process
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise ConfigError(
            f"--kv-offload-dir {folder}: {error.strerror} for {nbytes} bytes; give another folder "
            "or a smaller --kv-offload"
        ) from error
