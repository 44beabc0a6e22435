"""Placing memory on nodes, asking where it lies, and what happens where both are refused."""

import ctypes
import mmap
import platform
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from platforms import placement
from platforms.placement import (
    NodeRange,
    PageCount,
    PlacementError,
    count_pages,
    nodes_of_pages,
    place_on_nodes,
    whole_pages,
)
from platforms.probe import probe

HUGE = 2 << 20

CALLS = {"x86_64": (237, 279), "aarch64": (235, 239)}  # numbers of mbind and move_pages

# Installs a seccomp filter as a container runtime does: these calls fail with EPERM.
REFUSE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
steps = [(0x20, 0, 0, 0)]  # load the number of the call
steps += [(0x15, 0, 1, call) if i == 0 else (0x06, 0, 0, 0x00050001)
          for call in {calls} for i in (0, 1)]  # if it is this one, return EPERM
steps += [(0x06, 0, 0, 0x7FFF0000)]  # else allow
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0
"""


def run_refused(script: str) -> str:
    """What a Python process prints, with stderr, in which the placement calls fail with EPERM."""
    calls = CALLS[platform.machine()]
    done = subprocess.run(
        [sys.executable, "-c", REFUSE.format(calls=calls) + script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


class Pages:
    """Anonymous small pages, the first `num_touched` of them in memory."""

    def __init__(self, num_pages: int, num_touched: int) -> None:
        self._pages = mmap.mmap(-1, num_pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE)
        self._pages.madvise(mmap.MADV_NOHUGEPAGE)
        self.bytes = np.frombuffer(self._pages, np.uint8)
        self.bytes[: num_touched * mmap.PAGESIZE] = 1
        self.address = self.bytes.ctypes.data


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that says: pages below 16 MiB on node 0, then node 1, from 64 MiB on untouched."""

    def nodes(addresses: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.where(addresses >= 64 << 20, -2, addresses >= 16 << 20).astype(np.int64)

    monkeypatch.setattr(placement, "nodes_of_pages", nodes)


def test_borders_move_to_the_nearest_page_together() -> None:
    ranges = [NodeRange(0, 1500, (0,)), NodeRange(1500, 2600, (1,)), NodeRange(2600, 4000, (2,))]
    assert whole_pages(ranges, 1000) == (
        NodeRange(0, 2000, (0,)),
        NodeRange(2000, 3000, (1,)),
        NodeRange(3000, 4000, (2,)),
    )


@pytest.mark.parametrize(("stop", "is_left"), [(499, False), (500, True)])
def test_a_range_without_a_page_is_gone(stop: int, is_left: bool) -> None:
    assert bool(whole_pages([NodeRange(0, stop, (0,))], 1000)) == is_left


def test_ranges_of_whole_pages_stay() -> None:
    ranges = (NodeRange(HUGE, 3 * HUGE, (3,)), NodeRange(5 * HUGE, 6 * HUGE, (0, 1)))
    assert whole_pages(ranges, HUGE) == ranges
    assert whole_pages((), HUGE) == ()


@pytest.mark.usefixtures("two_nodes")
def test_pages_are_counted_by_node_and_by_where_they_belong() -> None:
    ranges = [NodeRange(0, 8 << 20, (0,)), NodeRange(8 << 20, 32 << 20, (1,))]
    count = count_pages(0, ranges, 1 << 20)
    assert count == PageCount(32, 24, ((0, 16), (1, 16)))
    assert (count.percent_at_home, count.render()) == (75, "50 % on node 0, 50 % on node 1")


@pytest.mark.usefixtures("two_nodes")
def test_pages_that_are_untouched_or_in_no_range_do_not_count() -> None:
    ranges = [NodeRange(0, 4 << 20, (0,)), NodeRange(60 << 20, 70 << 20, (0, 1))]
    assert count_pages(0, ranges, 1 << 20) == PageCount(8, 8, ((0, 4), (1, 4)))
    assert count_pages(0, [], 4096) == PageCount(0, 0, ())
    assert count_pages(64 << 20, ranges[:1], 1 << 20).percent_at_home == 0


@pytest.mark.usefixtures("two_nodes")
def test_of_very_many_pages_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MAX_PROBES", 8)
    count = count_pages(0, [NodeRange(0, 32 << 20, (1,))], 4096)
    assert count == PageCount(8, 4, ((0, 4), (1, 4)))


def test_the_kernel_tells_where_touched_pages_lie() -> None:
    pages = Pages(num_pages=4, num_touched=2)
    try:
        nodes = nodes_of_pages(pages.address + np.arange(4, dtype=np.int64) * mmap.PAGESIZE)
    except PlacementError as error:
        pytest.skip(str(error))
    assert set(nodes[:2]) <= set(probe().limits.memory_nodes)
    assert (nodes[2:] < 0).all()


def test_a_node_that_does_not_exist_is_an_error_with_a_remedy() -> None:
    pages = Pages(1, 0)
    with pytest.raises(PlacementError, match=r"mbind to nodes \[900\] was refused|install libnuma"):
        place_on_nodes(pages.address, mmap.PAGESIZE, [900])


def test_a_library_that_refuses_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def move_pages(self, *arguments: object) -> int:
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(placement, "_libnuma", Refusing)
    with pytest.raises(PlacementError, match=r"move_pages .* refused .*seccomp=FILE"):
        nodes_of_pages(np.zeros(1, np.int64))


@pytest.mark.skipif(platform.machine() not in CALLS, reason="numbers of the calls are not known")
def test_a_container_that_refuses_is_warned_about_once_for_each_call() -> None:
    text = run_refused(
        "from platforms.memory import Arena, NodeRange\n"
        "for name in 'ab':\n"
        "    arena = Arena(1 << 20, name, [0])\n"
        "    arena.array((1 << 20,), 'u1')[:] = 1\n"
        "    print(arena.nodes, arena.count_pages([NodeRange(0, 1 << 20, (0,))]))\n"
    )
    if "install libnuma" in text:
        pytest.skip("there is no libnuma")
    assert text.count("() None") == 2
    for call in ("mbind to nodes [0]", "move_pages"):
        assert text.count(call) == 1
    assert text.count("Operation not permitted") == 2
    assert text.count("--cap-add SYS_NICE") == text.count("seccomp=FILE") == 1
