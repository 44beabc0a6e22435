"""Arenas: alignment, exhaustion, huge pages, placement, and what is refused."""

import logging
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from platforms import memory, placement
from platforms.hugepages import HugePages, free_explicit_pages
from platforms.memory import ALIGNMENT, Arena, ArenaError, arena_nbytes, drop_file_pages
from platforms.placement import NodeRange, PlacementError
from platforms.probe import probe
from platforms.sysfs import Tree

HUGE = 2 << 20


@pytest.fixture(autouse=True)
def _fresh_warnings() -> Iterator[None]:
    memory._warn_once.cache_clear()
    yield
    memory._warn_once.cache_clear()


@pytest.mark.parametrize("nbytes", [1, ALIGNMENT, 4097, HUGE - 1, HUGE, HUGE + 1, 5 * HUGE])
def test_an_arena_starts_on_a_huge_page_and_is_zero(nbytes: int) -> None:
    arena = Arena(nbytes, "test")
    array = arena.array((nbytes,), np.uint8)
    assert array.ctypes.data % HUGE == 0
    assert not array.any()
    array[:] = 255
    assert (arena.nbytes, arena.nbytes_used) == (nbytes, nbytes)


def test_arrays_follow_each_other_aligned_and_apart() -> None:
    arena = Arena(4096, "test")
    first = arena.array((3, 5), np.float32)
    second = arena.array((1,), "uint16")
    third = arena.array((), np.int64)
    empty = arena.array((0, 7), np.float32)
    start = first.ctypes.data
    assert [a.ctypes.data - start for a in (second, third)] == [64, 128]
    assert (first.shape, third.shape, empty.shape) == ((3, 5), (), (0, 7))
    first[:] = 1
    third[()] = -1
    assert second[0] == 0
    assert arena.nbytes_used == 192


def test_the_last_byte_fits_and_the_next_does_not() -> None:
    arena = Arena(100, "weights")
    arena.array((64,), np.uint8)
    with pytest.raises(ArenaError, match=r"'weights'.*\(37,\).* 37 bytes, but 36 of 100 are left"):
        arena.array((37,), np.uint8)
    arena.array((36,), np.uint8)
    with pytest.raises(MemoryError, match="0 of 100 are left"):
        arena.array((1,), np.uint8)


def test_the_size_of_an_arena_is_computed_as_it_is_filled() -> None:
    sizes = [1, 64, 65, 0, 100]
    arena = Arena(arena_nbytes(sizes), "test")
    for nbytes in sizes:
        arena.array((nbytes,), np.uint8)
    assert arena.nbytes_used == arena.nbytes
    assert arena_nbytes([]) == 0


def test_an_arena_larger_than_the_address_space_is_refused() -> None:
    with pytest.raises(ArenaError, match="'vast': cannot map"):
        Arena(1 << 60, "vast")
    with pytest.raises(ArenaError, match="'vast': cannot map"):
        Arena(1 << 80, "vast")


def test_a_negative_size_is_a_mistake_and_zero_is_not() -> None:
    with pytest.raises(ValueError, match="-1"):
        Arena(-1, "test")
    assert Arena(0, "test").array((0,), np.float32).size == 0


def test_a_closed_arena_gives_nothing_more_but_keeps_what_it_gave() -> None:
    arena = Arena(HUGE, "test")
    array = arena.array((8,), np.float32)
    arena.close()
    arena.close()
    array[:] = 3
    assert array.sum() == 24
    assert arena.huge_page_bytes() == 0
    with pytest.raises(ValueError, match="'test' is closed"):
        arena.array((1,), np.uint8)


@pytest.mark.skipif(not probe().hugepages.is_thp_available, reason="no transparent huge pages")
def test_pages_become_huge_as_they_are_touched() -> None:
    one, other = Arena(8 * HUGE, "one"), Arena(8 * HUGE, "other")
    assert one.huge_page_bytes() == 0
    array = one.array((8 * HUGE,), np.uint8)
    array[: 2 * HUGE] = 1
    if one.huge_page_bytes() == 0:
        pytest.skip("the kernel has no huge page to spare")
    assert one.huge_page_bytes() <= 2 * HUGE
    assert other.huge_page_bytes() == 0


def test_a_small_arena_takes_no_huge_pages() -> None:
    arena = Arena(HUGE - 1, "small")
    arena.array((HUGE - 1,), np.uint8)[:] = 1
    assert arena.huge_page_bytes() == 0


def test_huge_pages_that_are_off_are_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    off = HugePages("never", "never", HUGE, False, ())
    monkeypatch.setattr(memory, "read_huge_pages", lambda tree: off)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            Arena(HUGE, "test").array((4,), np.uint8)[:] = 1
    assert len(caplog.records) == 1
    assert "transparent huge pages: off; as root" in caplog.text


def test_a_kernel_that_refuses_the_advice_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)
    monkeypatch.setattr(
        memory, "read_huge_pages", lambda tree: HugePages("always", "always", HUGE, False, ())
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            Arena(HUGE, "test").array((4,), np.uint8)[:] = 1
    assert [r.getMessage() for r in caplog.records] == [
        "the kernel refuses MADV_HUGEPAGE (Invalid argument); using small pages"
    ]


def test_memory_is_placed_on_the_nodes_the_process_may_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = probe().limits.memory_nodes
    arena = Arena(HUGE, "test", nodes)
    array = arena.array((HUGE,), np.uint8)
    array[:] = 1
    if not arena.nodes:
        pytest.skip(f"placement is refused here: {caplog.text}")
    assert arena.nodes == nodes
    maps = Path("/proc/self/numa_maps").read_text().splitlines()
    (policy,) = [line.split()[1] for line in maps if int(line.split()[0], 16) == array.ctypes.data]
    assert policy.startswith("prefer" if len(nodes) == 1 else "interleave")


@pytest.mark.parametrize("nodes", [None, ()])
def test_without_nodes_the_kernel_chooses(nodes: tuple[int, ...] | None) -> None:
    assert Arena(64, "test", nodes).nodes == ()


def test_a_node_that_does_not_exist_is_warned_about_once_and_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        arenas = [Arena(4096, "test", [900]) for _ in range(2)]
    assert [arena.nodes for arena in arenas] == [(), ()]
    assert len(caplog.records) == 1
    arenas[0].array((4096,), np.uint8)[:] = 1


def test_a_refusal_by_the_container_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(address: int, nbytes: int, nodes: object) -> None:
        raise PlacementError(1, "mbind was refused")

    monkeypatch.setattr(memory, "place_on_nodes", refuse)
    with caplog.at_level(logging.WARNING):
        assert Arena(4096, "test", [0]).nodes == ()
    assert "mbind was refused; memory goes where it is first touched" in caplog.text


def test_without_libnuma_memory_is_placed_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(placement, "_libnuma", lambda: None)
    assert Arena(4096, "test", [0]).nodes == ()
    assert "install libnuma" in caplog.text


@pytest.fixture
def pool() -> Iterator[int]:
    """Eight explicit huge pages that this process may have; the pool is as before afterwards."""
    size = Path("/proc/sys/vm/nr_hugepages")
    before = size.read_text() if size.exists() else ""
    free_before = free_explicit_pages(Tree(), HUGE)
    try:
        size.write_text(str(int(before) + 8 - free_before))
    except (OSError, ValueError) as error:
        pytest.skip(f"the pool of explicit huge pages cannot be changed here ({error})")
    try:
        if free_explicit_pages(Tree(), HUGE) != 8:
            pytest.skip("the kernel has no huge pages to spare for the pool")
        yield 8
    finally:
        size.write_text(before)


def test_an_arena_takes_explicit_huge_pages_while_the_pool_has_them(pool: int) -> None:
    first = Arena(5 * HUGE - 100, "first", probe().limits.memory_nodes)
    second = Arena(4 * HUGE, "second")
    assert (first.has_explicit_pages, second.has_explicit_pages) == (True, False)
    assert (first.huge_page_bytes(), first.page_bytes) == (5 * HUGE, HUGE)
    assert free_explicit_pages(Tree(), HUGE) == pool - 5
    array = first.array((first.nbytes,), np.uint8)
    assert array.ctypes.data % HUGE == 0
    assert not array.any()
    array[:] = 7
    del array
    first.close()
    assert free_explicit_pages(Tree(), HUGE) == pool


def test_an_arena_of_less_than_a_huge_page_leaves_the_pool_alone(pool: int) -> None:
    assert not Arena(HUGE - 1, "small").has_explicit_pages
    assert free_explicit_pages(Tree(), HUGE) == pool


def test_explicit_huge_pages_that_are_refused_are_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "free_explicit_pages", lambda tree, page_bytes: 8)
    monkeypatch.setattr(memory, "_EXPLICIT", memory._ORDINARY | 0x40000 | 20 << 26)  # of 1 MiB
    with caplog.at_level(logging.WARNING):
        for name in "ab":
            arena = Arena(HUGE, name)
            assert not arena.has_explicit_pages
            arena.array((4,), np.uint8)[:] = 1
    assert caplog.text.count("refuses explicit huge pages (Invalid argument)") == 1
    assert "hugetlb.2MB.max" in caplog.text


def test_explicit_huge_pages_that_cannot_be_filled_go_back_to_the_pool(
    pool: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(memory, "_MADV_POPULATE_WRITE", 9999)
    arena = Arena(2 * HUGE, "test")
    assert (arena.has_explicit_pages, free_explicit_pages(Tree(), HUGE)) == (False, pool)
    arena.array((2 * HUGE,), np.uint8)[:] = 1
    assert "refuses explicit huge pages" in caplog.text


def test_ranges_are_placed_over_the_rest_in_whole_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    monkeypatch.setattr(memory, "place_on_nodes", lambda *call: calls.append(call))
    ranges = [NodeRange(100, 3 * HUGE - 50, (1,)), NodeRange(3 * HUGE - 50, 3 * HUGE, (2,))]
    arena = Arena(4 * HUGE, "test", (0, 3), ranges)
    start = arena.array((1,), np.uint8).ctypes.data
    page = arena.page_bytes
    assert calls[0] == (start, 4 * HUGE, (0, 3))
    assert calls[1] == (start, 3 * HUGE, (1,))
    assert len(calls) == 2 if page == HUGE else 3
    assert arena.nodes == (0, 1, 3) if page == HUGE else (0, 1, 2, 3)


def test_small_arenas_are_placed_in_small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []
    monkeypatch.setattr(memory, "place_on_nodes", lambda *call: calls.append(call))
    page = mmap.PAGESIZE
    arena = Arena(3 * page, "test", None, [NodeRange(page, 3 * page, (1,))])
    assert calls == [(arena.array((1,), np.uint8).ctypes.data + page, 2 * page, (1,))]


def test_where_pages_lie_is_counted_or_said_to_be_unknown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    node = probe().limits.memory_nodes[0]
    arena = Arena(4 * mmap.PAGESIZE, "test", [node])
    arena.array((arena.nbytes,), np.uint8)[:] = 1
    ranges = [NodeRange(0, arena.nbytes, (node,))]
    if arena.nodes:
        count = arena.count_pages(ranges)
        assert count is not None
        assert (count.num_pages, count.num_at_home) == (4, 4)
    monkeypatch.setattr(placement, "_libnuma", lambda: None)
    with caplog.at_level(logging.WARNING):
        assert arena.count_pages(ranges) is None
    assert "install libnuma (libnuma1); where memory lies cannot be checked" in caplog.text


def test_dropping_the_pages_of_a_file_keeps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 10_000)
    drop_file_pages(path)
    drop_file_pages(str(path), 4096, 4096)
    assert path.read_bytes() == b"x" * 10_000
    with pytest.raises(FileNotFoundError):
        drop_file_pages(tmp_path / "absent")
