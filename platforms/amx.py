"""The kernel's permission to use AMX tiles: Linux grants their 8 KiB of state process by process.

The request is arch_prctl(ARCH_REQ_XCOMP_PERM) of Linux 5.16 (Documentation/arch/x86/xstate.rst).
"""

from __future__ import annotations

import ctypes
import os

from platforms.cpuinfo import host_arch

_SYS_ARCH_PRCTL = 158  # on x86_64
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def request_tiles() -> None:
    """Let this process and the threads it starts use AMX tiles; once is enough, twice is harmless.

    OSError with the reason if this is another architecture, or the kernel or the CPU has no tiles.
    """
    if host_arch() != "x86_64":
        raise OSError(f"AMX is a part of x86_64; this is {host_arch()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    arguments = (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)
    if libc.syscall(*map(ctypes.c_long, arguments)):
        code = ctypes.get_errno()
        raise OSError(code, f"the kernel grants no tiles ({os.strerror(code)})")
