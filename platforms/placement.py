"""On which NUMA nodes the pages of a memory range shall lie, and on which they do.

Containers often refuse these calls: whoever asks learns whether it worked, and goes on without.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

MAX_PROBES = 1 << 16  # pages that one count looks at: a few tens of milliseconds of system calls

# From linux/mempolicy.h. Preferring, not binding: on a full node a remote page beats an OOM kill.
_MPOL_PREFERRED = 1
_MPOL_INTERLEAVE = 3

_Longs = npt.NDArray[np.int64]


class PlacementError(OSError):
    """The kernel or the container refuses to place memory, or to tell where it is."""


@dataclass(frozen=True)
class NodeRange:
    """Bytes [start, stop) of an arena belong on `nodes`: one, or several between which they may
    lie.
    """

    start: int
    stop: int
    nodes: tuple[int, ...]


@dataclass(frozen=True)
class PageCount:
    """Of the pages looked at: how many lie on each node, and how many where they belong."""

    num_pages: int
    num_at_home: int
    by_node: tuple[tuple[int, int], ...]  # (node, pages)

    @property
    def percent_at_home(self) -> float:
        return 100 * self.num_at_home / max(self.num_pages, 1)

    def render(self) -> str:
        """As in "25 % on node 0, 75 % on node 1"."""
        shares = ((node, 100 * pages / max(self.num_pages, 1)) for node, pages in self.by_node)
        return ", ".join(f"{share:.3g} % on node {node}" for node, share in shares)


def whole_pages(ranges: Iterable[NodeRange], page_bytes: int) -> tuple[NodeRange, ...]:
    """The ranges with every border moved to the nearest page border.

    Borders that two ranges share move together, so nothing overlaps. Ranges that are left without a
    page are gone: at most half a page at either end of a range lies with its neighbour.
    """

    def nearest(at: int) -> int:
        return (at + page_bytes // 2) // page_bytes * page_bytes

    rounded = (NodeRange(nearest(r.start), nearest(r.stop), r.nodes) for r in ranges)
    return tuple(r for r in rounded if r.start < r.stop)


@cache
def _libnuma() -> ctypes.CDLL | None:
    """libnuma as py-libnuma finds it, reopened so that errno can be read; None where it is missing.

    Imported here because the search for the library takes tens of milliseconds.
    """
    try:
        from numa import LIBNUMA

        library = ctypes.CDLL(LIBNUMA._name, use_errno=True)
        if library.numa_available() < 0:
            return None
    except (ImportError, AttributeError, OSError, TypeError):
        return None
    library.mbind.restype = library.move_pages.restype = ctypes.c_long
    return library


def place_on_nodes(address: int, nbytes: int, nodes: Sequence[int]) -> None:
    """Asks that pages of [address, address + nbytes), not yet touched, be taken from `nodes`.

    One node is preferred; several are interleaved page by page. `address` must be page-aligned.
    Raises PlacementError, naming the remedy, where that is not to be had.
    """
    library = _required_libnuma()
    word_bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (max(nodes) // word_bits + 1))()
    for node in nodes:
        mask[node // word_bits] |= 1 << (node % word_bits)
    mode = _MPOL_PREFERRED if len(nodes) == 1 else _MPOL_INTERLEAVE
    # The kernel counts one bit less than it is told.
    num_bits = len(mask) * word_bits + 1
    status = library.mbind(
        ctypes.c_void_p(address),
        ctypes.c_ulong(nbytes),
        ctypes.c_int(mode),
        mask,
        ctypes.c_ulong(num_bits),
        ctypes.c_uint(0),
    )
    if status != 0:
        raise _refusal(
            f"mbind to nodes {list(nodes)}",
            "check that the nodes exist and, in a container, allow the call (docker: --cap-add "
            "SYS_NICE)",
        )


def nodes_of_pages(addresses: _Longs) -> _Longs:
    """The node of the page that each address lies in; negative for a page nobody has touched.

    Moves nothing. Raises PlacementError, naming the remedy, where that is not to be had.
    """
    library = _required_libnuma()
    pages = np.ascontiguousarray(addresses, np.uint64)
    status = np.empty(len(pages), np.int32)
    failed = library.move_pages(
        ctypes.c_int(0),  # this process
        ctypes.c_ulong(len(pages)),
        ctypes.c_void_p(pages.ctypes.data),
        None,  # no target: only tell
        ctypes.c_void_p(status.ctypes.data),
        ctypes.c_int(0),
    )
    if failed:
        raise _refusal(
            "asking move_pages where memory lies",
            "in a container, allow the call in the seccomp profile (docker: --security-opt "
            "seccomp=FILE; the default profile never does)",
        )
    return status.astype(np.int64)


def count_pages(address: int, ranges: Sequence[NodeRange], page_bytes: int) -> PageCount:
    """Where the touched pages lie of an arena that begins at `address`, evenly sampled.

    Every page is looked at up to MAX_PROBES, then every second, and so on. Raises PlacementError.
    """
    starts = np.array([r.start for r in ranges], np.int64)
    stops = np.array([r.stop for r in ranges], np.int64)
    if not len(starts):
        return PageCount(0, 0, ())
    num_pages = -(-(int(stops[-1]) - int(starts[0])) // page_bytes)
    stride = page_bytes * -(-num_pages // MAX_PROBES)
    offsets = np.arange(starts[0] + page_bytes // 2, stops[-1], stride)
    owners = np.searchsorted(starts, offsets, side="right") - 1
    inside = offsets < stops[owners]
    offsets, owners = offsets[inside], owners[inside]
    nodes = nodes_of_pages(address + offsets)
    nodes, owners = nodes[nodes >= 0], owners[nodes >= 0]
    num_at_home = 0
    for wanted in {r.nodes for r in ranges}:
        is_wanted = np.array([r.nodes == wanted for r in ranges])[owners]
        num_at_home += int(np.isin(nodes[is_wanted], wanted).sum())
    found, counts = np.unique(nodes, return_counts=True)
    by_node = zip(found.tolist(), counts.tolist(), strict=True)
    return PageCount(len(nodes), num_at_home, tuple(by_node))


def _required_libnuma() -> ctypes.CDLL:
    library = _libnuma()
    if library is None:
        raise PlacementError("NUMA placement is not available here; install libnuma (libnuma1)")
    return library


def _refusal(call: str, remedy: str) -> PlacementError:
    error = ctypes.get_errno()
    return PlacementError(error, f"{call} was refused ({os.strerror(error)}); {remedy}")
