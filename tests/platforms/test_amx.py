"""The request for AMX tiles: granted, refused, or not made at all."""

from __future__ import annotations

import ctypes
import errno
import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from platforms import isa
from platforms.amx import granted_flags, request_tiles
from platforms.cpuinfo import read_cpu_info
from platforms.isa import IsaError, isa_row, select_isa
from platforms.sysfs import Tree

FLAGS = isa_row("amx").required_flags
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18
INFO = read_cpu_info(Tree())


class Kernel:
    """A libc whose system calls end with an error number, or with 0."""

    def __init__(self, error: int) -> None:
        self.calls: list[tuple[int, ...]] = []

        def syscall(*arguments: ctypes.c_long) -> int:
            self.calls.append(tuple(argument.value for argument in arguments))
            ctypes.set_errno(error)
            return -1 if error else 0

        self.syscall = syscall


Answer = Callable[[int], Kernel]


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Makes this a machine whose CPU has AMX and whose kernel answers with an error number."""

    def install(error: int) -> Kernel:
        kernel = Kernel(error)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: kernel)
        info = replace(INFO, arch="x86_64", flags=FLAGS)
        monkeypatch.setattr(isa, "read_cpu_info", lambda _: info)
        return kernel

    return install


def test_granted_tiles_select_amx(answer: Answer) -> None:
    kernel = answer(0)
    assert select_isa(forced="auto").name == "amx"
    assert kernel.calls == [(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA)]


def test_refused_tiles_select_the_row_below_and_say_why(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    answer(errno.EPERM)
    with caplog.at_level(logging.WARNING):
        assert select_isa(forced="auto").name == "avx512_bf16"
    assert "Operation not permitted" in caplog.text
    with pytest.raises(IsaError, match="'amx' needs amx_bf16 amx_int8 amx_tile"):
        select_isa(forced="amx")


def test_a_cpu_without_tiles_asks_for_none(answer: Answer) -> None:
    kernel = answer(0)
    below = isa_row("avx512_bf16").required_flags
    assert granted_flags(below) == below
    assert kernel.calls == []


@pytest.mark.skipif(INFO.arch != "x86_64", reason="the system call is of x86_64")
@pytest.mark.skipif("amx_tile" in INFO.flags, reason="the CPU has AMX")
def test_the_kernel_of_a_cpu_without_amx_refuses() -> None:
    with pytest.raises(OSError, match=r"Operation not supported|Invalid argument"):
        request_tiles()
