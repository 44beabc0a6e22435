"""The kernel's permission to use AMX tiles: Linux grants their 8 KiB of state process by process.

The request is arch_prctl(ARCH_REQ_XCOMP_PERM) of Linux 5.16 (Documentation/arch/x86/xstate.rst).
"""

from __future__ import annotations

import ctypes
import logging
import os

_SYS_ARCH_PRCTL = 158  # on x86_64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18
_TILES = "amx_tile"
_log = logging.getLogger(__name__)


def request_tiles() -> None:
    """Let this process and the threads it starts use AMX tiles; once is enough, twice is harmless.

    OSError with the reason if the kernel, or the CPU of this x86_64 machine, has no tiles.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    arguments = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    if libc.syscall(*map(ctypes.c_long, arguments)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def granted_flags(flags: frozenset[str]) -> frozenset[str]:
    """The features of this machine's CPU that this process may use: all of `flags`, or, if it has
    AMX and the kernel refuses the tiles, those without AMX. The tiles are requested here.
    """
    if _TILES not in flags:
        return flags
    try:
        request_tiles()
    except OSError as error:
        _log.warning("the CPU has AMX, which the kernel does not let us use: %s", error)
        return frozenset(flag for flag in flags if not flag.startswith("amx_"))
    return flags
