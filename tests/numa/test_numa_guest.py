"""On a kernel with four NUMA nodes: where the project puts memory, and what the kernel says."""

from typing import Any

import pytest

pytestmark = pytest.mark.slow

MIB = 1 << 20
NODES = ["0", "1", "2", "3"]
Report = dict[str, Any]


def shares(report: Report) -> list[float]:
    """Percent of the mapped bytes on each node, by the kernel's numa_maps."""
    by_node = report["numa_maps_bytes"]
    return [100 * by_node.get(node, 0) / sum(by_node.values()) for node in NODES]


def test_the_probe_finds_the_nodes_and_groups_that_the_kernel_lists(guest: Report) -> None:
    found = guest["topology"]
    cpus = [[cpu for group in node for cpu in group] for node in found["nodes"]]
    assert [f"{node[0]}-{node[-1]}" for node in cpus] == found["kernel_nodes"]
    groups = [group for node in found["nodes"] for group in node]
    assert [f"{group[0]}-{group[-1]}" for group in groups] == found["kernel_caches"]
    assert len(groups) == 8
    assert found["usable"] == list(range(0, 32, 2))  # one thread of each core


def test_the_search_sees_cores_groups_nodes_and_sockets(guest: Report) -> None:
    names = guest["topology"]["candidates"]
    assert names[0] == "all 16 cores"
    assert {"1 core per LLC group", "1 LLC group per node", "1 node per socket", "1 socket"} < {
        *names
    }
    assert "one node" in names


def test_weights_lie_where_their_readers_are_but_for_pages_on_borders(guest: Report) -> None:
    report = guest["weights"]
    assert report["percent_local"] > 98
    assert report["percent_counted"] == pytest.approx(report["percent_local"], abs=0.1)
    assert shares(report) == pytest.approx([25] * 4, abs=2)  # a huge page is 0.8
    # Free memory of the nodes says the same; other things take and give back a little meanwhile.
    quarter = report["nbytes"] / 4
    assert report["taken_bytes"] == pytest.approx([quarter] * 4, abs=16 * MIB)


def test_placing_keeps_huge_pages_whole(guest: Report) -> None:
    for name in ("weights", "cache"):
        assert guest[name]["huge_page_bytes"] >= 0.9 * guest[name]["nbytes"]


def test_the_cache_lies_where_the_readers_of_its_heads_are(guest: Report) -> None:
    assert guest["cache"]["percent_local"] == guest["cache"]["percent_counted"] == 100
    assert shares(guest["cache"]) == [25] * 4


def test_interleaved_weights_are_everywhere_and_untold_ones_with_the_first_who_touched_them(
    guest: Report,
) -> None:
    assert shares(guest["interleaved"]) == pytest.approx([25] * 4, abs=2)
    assert shares(guest["untold"]) == [100, 0, 0, 0]
    for name in ("interleaved", "untold"):
        assert guest[name]["percent_local"] == pytest.approx(25, abs=6)


def test_explicit_huge_pages_are_taken_from_the_pools_of_the_nodes(guest: Report) -> None:
    report = guest["explicit"]
    assert guest["pool"] == [64] * 4
    assert report["is_explicit"]
    assert report["percent_local"] > 98
    assert shares(report) == pytest.approx([25] * 4, abs=2)
    assert sum(report["taken_bytes"]) < 8 * MIB  # not from what was free


def test_a_pod_uses_what_it_was_given_and_survives_what_it_was_not(guest: Report) -> None:
    report = guest["group"]
    assert report["usable"] == [8, 10, 12]  # 3.5 cores of CPUs 8-15
    assert report["memory_nodes"] == [1]
    assert report["placement_nodes"] == []
    assert report["numa_maps_bytes"] == {"1": 64 * MIB}
    assert not report["is_explicit"]
    (message,) = report["warnings"]
    assert "refuses explicit huge pages" in message
    assert "hugetlb.2MB.max" in message
