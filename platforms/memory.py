"""Memory that the engine owns: arenas on huge pages, placed on NUMA nodes; dropping file pages."""

import logging
import math
import mmap
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from platforms.hugepages import free_explicit_pages, read_huge_pages
from platforms.placement import (
    NodeRange,
    PageCount,
    PlacementError,
    count_pages,
    place_on_nodes,
    whole_pages,
)
from platforms.sysfs import Tree

ALIGNMENT = 64  # bytes: a cache line, a 512-bit vector, and what TVM demands of a tensor
HUGE_PAGE_BYTES = 2 << 20  # of explicit huge pages, and what arenas are aligned to

_ORDINARY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
# From asm-generic/mman.h, which x86 and ARM share; Python has no names for them.
_EXPLICIT = _ORDINARY | 0x40000 | 21 << 26  # MAP_HUGETLB | MAP_HUGE_2MB
_MADV_POPULATE_WRITE = 23  # since Linux 5.14

_logger = logging.getLogger(__name__)


class ArenaError(MemoryError):
    """An arena could not be mapped, or is too small for an array."""


@cache
def _warn_once(message: str) -> None:
    _logger.warning(message)


class Arena:
    """One run of anonymous memory that hands out zeroed arrays from front to back.

    The start is aligned to 2 MiB. The pages come from the pool of explicit huge pages if that can
    hold the arena, else they ask to be transparent huge ones. They lie on the NUMA nodes `nodes`
    (one: preferred; several: interleaved; none: wherever they are first touched), but whole pages
    of `ranges`, sorted and disjoint, where those say. What the kernel refuses is warned about once
    and done without. Pages that are not explicit huge ones are not touched here: the first writer
    pays for them. Handing out arrays is not thread-safe. Raises ArenaError if the memory cannot be
    mapped.
    """

    def __init__(
        self,
        nbytes: int,
        name: str,
        nodes: Sequence[int] | None = None,
        ranges: Sequence[NodeRange] = (),
    ) -> None:
        if nbytes < 0:
            raise ValueError(f"arena {name!r}: nbytes is {nbytes}, it must not be negative")
        self.name = name
        self.nbytes = nbytes
        self.nbytes_used = 0
        self.page_bytes = mmap.PAGESIZE  # to which ranges are rounded
        self.nodes: tuple[int, ...] = ()  # that pages were placed on; empty: the kernel chooses
        self._bytes: npt.NDArray[np.uint8] | None = None
        wants_huge_pages = nbytes >= HUGE_PAGE_BYTES
        # Whole huge pages, so that the tail is one too.
        granule = HUGE_PAGE_BYTES if wants_huge_pages else mmap.PAGESIZE
        self._span = _round_up(max(nbytes, 1), granule)
        everywhere = NodeRange(0, self._span, tuple(nodes or ()))
        self.has_explicit_pages = wants_huge_pages and self._map_explicit_pages(everywhere, ranges)
        if not self.has_explicit_pages:
            self._map_ordinary_pages(wants_huge_pages)
            self._place(everywhere, ranges)

    def _map_explicit_pages(self, everywhere: NodeRange, ranges: Sequence[NodeRange]) -> bool:
        """Whether the pool holds the arena. All pages are taken at once: later, one too many would
        be a bus error instead of a refusal.
        """
        num_pages = self._span // HUGE_PAGE_BYTES
        num_free = free_explicit_pages(Tree(), HUGE_PAGE_BYTES)
        if num_free < num_pages:
            if num_free:
                text = "arena %r needs %d explicit huge pages, %d are free; it does without"
                _logger.info(text, self.name, num_pages, num_free)
            return False
        try:
            pages = mmap.mmap(-1, self._span, flags=_EXPLICIT)
            self._take(pages, 0, HUGE_PAGE_BYTES)
            self._place(everywhere, ranges)
            pages.madvise(_MADV_POPULATE_WRITE)
        except OSError as error:
            self._bytes = None
            _warn_once(
                f"the kernel refuses explicit huge pages ({error.strerror}), though its pool has "
                "enough; in a container, raise its limit (hugetlb.2MB.max; Kubernetes: "
                "hugepages-2Mi), on Linux before 5.14 empty the pool; going on without"
            )
            return False
        return True

    def _map_ordinary_pages(self, wants_huge_pages: bool) -> None:
        # [base, start) is at least one page that nobody advises, so that the kernel never merges
        # two arenas into one mapping; [start, start + span) is the arena.
        try:
            pages = mmap.mmap(-1, self._span + HUGE_PAGE_BYTES, flags=_ORDINARY)
        except (OSError, OverflowError) as error:
            raise ArenaError(
                f"arena {self.name!r}: cannot map {self.nbytes} bytes ({error}); use a smaller "
                "model or cache, or raise the limit on address space (ulimit -v, "
                "vm.overcommit_memory)"
            ) from error
        base = np.frombuffer(pages, np.uint8).ctypes.data
        head = _round_up(base + mmap.PAGESIZE, HUGE_PAGE_BYTES) - base
        is_huge = wants_huge_pages and self._ask_for_huge_pages(pages, head)
        self._take(pages, head, HUGE_PAGE_BYTES if is_huge else mmap.PAGESIZE)

    def _ask_for_huge_pages(self, pages: mmap.mmap, head: int) -> bool:
        if problem := read_huge_pages(Tree()).problem:
            _warn_once(f"transparent huge pages: {problem}. Decoding will be slower")
        try:
            pages.madvise(mmap.MADV_HUGEPAGE, head, self._span)
        except OSError as error:
            _warn_once(f"the kernel refuses MADV_HUGEPAGE ({error.strerror}); using small pages")
            return False
        return not problem

    def _take(self, pages: mmap.mmap, head: int, page_bytes: int) -> None:
        base = np.frombuffer(pages, np.uint8)
        self._bytes = base[head : head + self.nbytes]
        self._start = base.ctypes.data + head
        self.page_bytes = page_bytes

    def _place(self, everywhere: NodeRange, ranges: Sequence[NodeRange]) -> None:
        parts = [everywhere, *whole_pages(ranges, self.page_bytes)]
        parts = [part for part in parts if part.nodes]
        try:
            for part in parts:
                nbytes = min(part.stop, self._span) - part.start
                place_on_nodes(self._start + part.start, nbytes, part.nodes)
        except PlacementError as error:
            _warn_once(f"{error.strerror or error}; memory goes where it is first touched")
        else:
            self.nodes = tuple(sorted({node for part in parts for node in part.nodes}))

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

    def bytes_between(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes [start, stop) of what was handed out."""
        assert self._bytes is not None, self.name
        assert 0 <= start <= stop <= self.nbytes_used, (start, stop, self.nbytes_used)
        return self._bytes[start:stop]

    def huge_page_bytes(self) -> int:
        """How many bytes of the arena lie on huge pages now; grows as pages are first touched."""
        if self._bytes is None:
            return 0
        if self.has_explicit_pages:
            return self._span
        return _huge_bytes_between(self._start, self._start + self._span)

    def count_pages(self, ranges: Sequence[NodeRange]) -> PageCount | None:
        """On which nodes the touched pages of `ranges` lie; None, with a warning, if the kernel
        does not tell. A huge page counts as so many ordinary ones, each where its bytes belong.
        """
        try:
            return count_pages(self._start, ranges, mmap.PAGESIZE)
        except PlacementError as error:
            _warn_once(f"{error.strerror or error}; where memory lies cannot be checked")
            return None

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
