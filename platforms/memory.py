"""Memory that the engine owns: arenas on huge pages, placed on NUMA nodes, and dropping file pages.

Knows nothing of weights, caches or models: it hands out zeroed arrays.
"""

import logging
import math
import mmap
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from platforms.hugepages import read_huge_pages
from platforms.placement import PlacementError, place_on_nodes
from platforms.sysfs import Tree

ALIGNMENT = 64  # bytes: a cache line, a 512-bit vector, and what TVM demands of a tensor
_HUGE_PAGE = 2 << 20

_logger = logging.getLogger(__name__)


class ArenaError(MemoryError):
    """An arena could not be mapped, or is too small for an array."""


@cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


class Arena:
    """One run of anonymous memory that hands out zeroed arrays from front to back.

    The start is aligned to 2 MiB, and the pages ask to be huge and, with `nodes`, to lie on these
    NUMA nodes (one: preferred; several: interleaved). What the kernel refuses is warned about once
    and done without. Pages are not touched here: the first writer of a page pays for it. Handing
    out arrays is not thread-safe. Raises ArenaError if the memory cannot be mapped.
    """

    def __init__(self, nbytes: int, name: str, nodes: Sequence[int] | None = None) -> None:
        if nbytes < 0:
            raise ValueError(f"arena {name!r}: nbytes is {nbytes}, it must not be negative")
        self.name = name
        self.nbytes = nbytes
        self.nbytes_used = 0
        self._wants_huge_pages = nbytes >= _HUGE_PAGE
        # Whole huge pages, so that the tail is one too.
        page_bytes = _HUGE_PAGE if self._wants_huge_pages else mmap.PAGESIZE
        self._span = _round_up(max(nbytes, 1), page_bytes)
        # [base, start) is at least one page that nobody advises, so that the kernel never merges
        # two arenas into one mapping; [start, start + span) is the arena.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            pages = mmap.mmap(-1, self._span + _HUGE_PAGE, flags=flags)
        except (OSError, OverflowError) as error:
            raise ArenaError(
                f"arena {name!r}: cannot map {nbytes} bytes ({error}); use a smaller model or "
                "cache, or raise the limit on address space (ulimit -v, vm.overcommit_memory)"
            ) from error
        base = np.frombuffer(pages, np.uint8)
        head = _round_up(base.ctypes.data + mmap.PAGESIZE, _HUGE_PAGE) - base.ctypes.data
        self._bytes: npt.NDArray[np.uint8] | None = base[head : head + nbytes]
        self._start = base.ctypes.data + head
        if self._wants_huge_pages:
            self._ask_for_huge_pages(pages, head)
        self.nodes = self._ask_for_nodes(nodes or ())

    def _ask_for_huge_pages(self, pages: mmap.mmap, head: int) -> None:
        if problem := read_huge_pages(Tree()).problem:
            _warn_once(f"transparent huge pages: {problem}. Decoding will be slower")
        try:
            pages.madvise(mmap.MADV_HUGEPAGE, head, self._span)
        except OSError as error:
            _warn_once(f"the kernel refuses MADV_HUGEPAGE ({error.strerror}); using small pages")

    def _ask_for_nodes(self, nodes: Sequence[int]) -> tuple[int, ...]:
        """The nodes that the memory is really placed on; empty if the kernel chooses."""
        if not nodes:
            return ()
        try:
            place_on_nodes(self._start, self._span, nodes)
        except PlacementError as error:
            _warn_once(f"{error.strerror or error}; memory goes where it is first touched")
            return ()
        return tuple(nodes)

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The next zeroed array, 64-byte aligned. Raises ArenaError if it does not fit."""
        if self._bytes is None:
            raise ValueError(f"arena {self.name!r} is closed")
        dtype = np.dtype(dtype)
        start = _round_up(self.nbytes_used, ALIGNMENT)
        end = start + math.prod(shape) * dtype.itemsize
        if end > self.nbytes:
            raise ArenaError(
                f"arena {self.name!r}: an array of shape {tuple(shape)} and type {dtype} needs "
                f"{end - start} bytes, but {max(self.nbytes - start, 0)} of {self.nbytes} are left"
                "; make the arena larger"
            )
        self.nbytes_used = end
        return self._bytes[start:end].view(dtype).reshape(shape)

    def huge_page_bytes(self) -> int:
        """How many bytes of the arena lie on huge pages now; grows as pages are first touched."""
        if self._bytes is None:
            return 0
        return _huge_bytes_between(self._start, self._start + self._span)

    def close(self) -> None:
        """Lets go of the memory; it returns to the system when the last array of it is gone."""
        self._bytes = None


def arena_nbytes(sizes: Sequence[int]) -> int:
    """Bytes of an arena that holds arrays of these sizes in bytes, handed out in this order."""
    total = 0
    for nbytes in sizes:
        total = _round_up(total, ALIGNMENT) + nbytes
    return total


def drop_file_pages(path: str | os.PathLike[str], offset: int = 0, nbytes: int = 0) -> None:
    """Drops clean pages of a file from the page cache; `nbytes` 0 means to the end.

    Pages that some process has mapped stay: unmap first. Raises OSError if the file cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _huge_bytes_between(start: int, end: int) -> int:
    """Bytes of [start, end) on huge pages, from the overlapping mappings in /proc/self/smaps."""
    total = 0
    overlap = 0
    for line in (Tree().read_bytes("proc/self/smaps") or b"").splitlines():
        key, _, rest = line.partition(b" ")
        if not key.endswith(b":"):  # a new mapping: "7f00-7f80 rw-p ..."
            low, _, high = key.partition(b"-")
            overlap = max(0, min(end, int(high, 16)) - max(start, int(low, 16)))
        elif overlap and key == b"AnonHugePages:":
            total += min(overlap, int(rest.split()[0]) << 10)
    return total
