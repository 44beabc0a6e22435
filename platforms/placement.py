"""Telling the kernel on which NUMA nodes the pages of a memory range shall lie.

Containers often refuse these calls: whoever asks learns whether it worked, and goes on without.
Knows nothing of what the memory holds.
"""

import ctypes
import os
from collections.abc import Sequence
from functools import cache

# From linux/mempolicy.h. Preferring, not binding: on a full node a remote page beats an OOM kill.
_MPOL_PREFERRED = 1
_MPOL_INTERLEAVE = 3


class PlacementError(OSError):
    """The kernel or the container refuses to place memory on the nodes asked for."""


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
    library.mbind.restype = ctypes.c_long
    return library


def place_on_nodes(address: int, nbytes: int, nodes: Sequence[int]) -> None:
    """Asks that pages of [address, address + nbytes), not yet touched, be taken from `nodes`.

    One node is preferred; several are interleaved page by page. `address` must be page-aligned.
    Raises PlacementError, naming the remedy, where that is not to be had.
    """
    library = _libnuma()
    if library is None:
        raise PlacementError("NUMA placement is not available here; install libnuma (libnuma1)")
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
        error = ctypes.get_errno()
        raise PlacementError(
            error,
            f"mbind to nodes {list(nodes)} was refused ({os.strerror(error)}); check that the "
            "nodes exist and, in a container, allow the call (docker: --cap-add SYS_NICE)",
        )
