"""The state of huge pages."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from platforms.hugepages import HugePagePool, free_explicit_pages, read_huge_pages
from platforms.sysfs import Tree

if TYPE_CHECKING:
    from tests.platforms.conftest import RecordedTree

THP = "sys/kernel/mm/transparent_hugepage"


@pytest.mark.parametrize(
    ("text", "mode", "is_available"),
    [
        ("[always] madvise never", "always", True),
        ("always [madvise] never", "madvise", True),
        ("always madvise [never]", "never", False),
    ],
)
def test_the_mode_is_the_word_in_brackets(
    tree: RecordedTree, text: str, mode: str, is_available: bool
) -> None:
    tree.write(f"{THP}/enabled", text)
    tree.write(f"{THP}/defrag", "always defer defer+madvise [madvise] never")
    state = read_huge_pages(Tree(tree.root))
    assert (state.thp_mode, state.is_thp_available) == (mode, is_available)
    assert bool(state.problem) != is_available
    assert state.thp_defrag == "madvise"


def test_a_kernel_without_huge_pages_says_so(tree: RecordedTree) -> None:
    state = read_huge_pages(Tree(tree.root))
    assert (state.thp_mode, state.problem) == ("unsupported", "the kernel offers none")
    assert state.pools == ()


def test_the_mode_of_the_size_goes_before_the_common_one(tree: RecordedTree) -> None:
    tree.write(f"{THP}/enabled", "[always] madvise never")
    tree.write(f"{THP}/hpage_pmd_size", str(32 << 20))
    tree.write(f"{THP}/hugepages-32768kB/enabled", "always [inherit] madvise never")
    assert read_huge_pages(Tree(tree.root)).thp_mode == "always"
    tree.write(f"{THP}/hugepages-32768kB/enabled", "always inherit madvise [never]")
    assert read_huge_pages(Tree(tree.root)).thp_mode == "never"


def test_a_launcher_can_have_disabled_them(tree: RecordedTree) -> None:
    tree.write(f"{THP}/enabled", "[always] madvise never")
    tree.write("proc/self/status", "Name:\tpython\nTHP_enabled:\t0")
    assert "PR_SET_THP_DISABLE" in read_huge_pages(Tree(tree.root)).problem


def test_pools_come_in_the_order_of_their_page_size(tree: RecordedTree) -> None:
    for size, count in ((1048576, 2), (2048, 100)):
        base = f"sys/kernel/mm/hugepages/hugepages-{size}kB"
        tree.write(f"{base}/nr_hugepages", str(count))
        tree.write(f"{base}/free_hugepages", str(count - 1))
    pools = read_huge_pages(Tree(tree.root)).pools
    assert pools == (HugePagePool(2 << 20, 100, 99), HugePagePool(1 << 30, 2, 1))


def test_the_bytes_of_a_pool_are_those_of_its_free_pages(tree: RecordedTree) -> None:
    state = replace(read_huge_pages(Tree(tree.root)), pools=(HugePagePool(2 << 20, 100, 99),))
    assert state.free_explicit_bytes(2 << 20) == 198 << 20
    assert state.free_explicit_bytes(1 << 30) == 0


def test_free_pages_are_those_of_the_allowed_nodes_less_what_was_promised(
    epyc: RecordedTree,
) -> None:
    for node, num_free in ((0, 30), (1, 50)):
        pool = f"sys/devices/system/node/node{node}/hugepages/hugepages-2048kB"
        epyc.write(f"{pool}/free_hugepages", str(num_free))
    pool = "sys/kernel/mm/hugepages/hugepages-2048kB"
    epyc.write(f"{pool}/free_hugepages", "80")
    epyc.write(f"{pool}/resv_hugepages", "10")
    assert free_explicit_pages(Tree(epyc.root), 2 << 20) == 70
    epyc.status("0-31", mems="1")
    assert free_explicit_pages(Tree(epyc.root), 2 << 20) == 40
    epyc.write(f"{pool}/resv_hugepages", "60")
    assert free_explicit_pages(Tree(epyc.root), 2 << 20) == 0


def test_without_numbers_for_each_node_those_of_the_machine_count(box: RecordedTree) -> None:
    assert free_explicit_pages(Tree(box.root), 2 << 20) == 0
    box.write("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "7")
    assert free_explicit_pages(Tree(box.root), 2 << 20) == 7
