"""What a process may use: affinity, control groups of both versions, memory, equal cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from platforms.cgroup import read_cgroup_limits
from platforms.machines import load_machine
from platforms.probe import probe
from platforms.process_limits import Limits, select_cpus
from platforms.sysfs import Tree

if TYPE_CHECKING:
    from tests.platforms.conftest import RecordedTree

GIB = 1 << 30
POD = "/kubepods/pod7/main"


def limits(tree: RecordedTree) -> Limits:
    return probe(tree.root).limits


def rules(found: Limits) -> dict[str, int]:
    return {step.rule: len(step.cpus) for step in found.selection}


def test_one_cpu_for_each_physical_core(epyc: RecordedTree) -> None:
    assert limits(epyc).usable_cpus() == tuple(range(16))


def test_affinity_decides_which_sibling_stands_for_its_core(epyc: RecordedTree) -> None:
    epyc.status("1,17,18,22-23")
    assert limits(epyc).usable_cpus() == (1, 18, 22, 23)


def test_efficiency_cores_are_left_out_by_their_frequency(laptop: RecordedTree) -> None:
    found = limits(laptop)
    assert found.usable_cpus() == (0, 2)
    assert rules(found) == {"online": 8, "affinity": 8, "one per core": 6, "equal cores": 2}


def test_efficiency_cores_are_left_out_by_their_capacity(kunpeng: RecordedTree) -> None:
    for cpu in range(4, 12):
        kunpeng.write(f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", "600")
    assert limits(kunpeng).usable_cpus() == (0, 1, 2, 3, 12, 13, 14, 15)


def test_efficiency_cores_are_left_out_by_their_kind(laptop: RecordedTree) -> None:
    for cpu in range(8):
        laptop.write(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", "3000000")
    assert limits(laptop).usable_cpus() == (0, 2, 4, 5, 6, 7)
    laptop.write("sys/devices/cpu_core/cpus", "0-3")
    laptop.write("sys/devices/cpu_atom/cpus", "4-7")
    assert limits(laptop).usable_cpus() == (0, 2)


def test_efficiency_cores_serve_where_nothing_else_is_allowed(laptop: RecordedTree) -> None:
    laptop.write("sys/devices/cpu_core/cpus", "0-3")
    laptop.write("sys/devices/cpu_atom/cpus", "4-7")
    laptop.status("5-7")
    assert limits(laptop).usable_cpus() == (5, 6, 7)


def test_a_core_of_unknown_speed_makes_all_count_as_equal(laptop: RecordedTree) -> None:
    (laptop.path / "sys/devices/system/cpu/cpu7/cpufreq/cpuinfo_max_freq").unlink()
    assert limits(laptop).usable_cpus() == (0, 2, 4, 5, 6, 7)


def test_a_pod_is_held_to_its_quota_and_its_cpuset(epyc: RecordedTree) -> None:
    epyc.cgroup_v2("/", mount_root=POD)
    epyc.status("4-7,20-23", "0")
    epyc.write("sys/fs/cgroup/cpu.max", "350000 100000")
    epyc.write("sys/fs/cgroup/cpuset.cpus.effective", "4-7,20-23")
    epyc.write("sys/fs/cgroup/memory.max", str(8 * GIB))
    epyc.write("sys/fs/cgroup/memory.current", str(3 * GIB))
    epyc.write("sys/fs/cgroup/memory.stat", f"anon 1\ninactive_file {GIB}")
    found = limits(epyc)
    assert found.cgroup.version == "v2"
    assert found.cpu_quota == 3.5
    assert found.cpuset == (4, 5, 6, 7, 20, 21, 22, 23)
    assert found.usable_cpus() == (4, 5, 6)
    assert found.memory_limit_bytes == 8 * GIB
    assert found.memory_available_bytes == 6 * GIB
    assert found.memory_nodes == (0,)


def test_the_tightest_limit_on_the_way_up_applies(epyc: RecordedTree) -> None:
    epyc.cgroup_v2(POD)
    base = "sys/fs/cgroup"
    epyc.write(f"{base}{POD}/cpu.max", "max 100000")
    epyc.write(f"{base}{POD}/memory.max", "max")
    epyc.write(f"{base}/kubepods/pod7/cpu.max", "400000 100000")
    epyc.write(f"{base}/kubepods/pod7/memory.max", str(4 * GIB))
    epyc.write(f"{base}/kubepods/cpu.max", "150000 50000")
    epyc.write(f"{base}/kubepods/memory.high", str(16 * GIB))
    epyc.write(f"{base}/kubepods/memory.current", str(15 * GIB))
    epyc.write(f"{base}/kubepods/cpuset.cpus.effective", "0-7")
    found = limits(epyc)
    assert (found.cpu_quota, found.cgroup.cpu_quota_source) == (3, f"/{base}/kubepods/cpu.max")
    assert found.memory_limit_bytes == 4 * GIB
    assert found.cgroup.memory_limit_source == f"/{base}/kubepods/pod7/memory.max"
    # The parent has the higher limit, but it is the fuller one.
    assert found.memory_available_bytes == GIB
    assert found.cpuset == tuple(range(8))
    assert found.usable_cpus() == (0, 1, 2)


def test_a_container_of_version_1_is_held_to_its_limits(epyc: RecordedTree) -> None:
    epyc.cgroup_v1("/docker/abc", mount_root="/docker/abc")
    base = "sys/fs/cgroup"
    epyc.write(f"{base}/cpu,cpuacct/cpu.cfs_quota_us", "200000")
    epyc.write(f"{base}/cpu,cpuacct/cpu.cfs_period_us", "100000")
    epyc.write(f"{base}/cpuset/cpuset.cpus", "8-15")
    epyc.write(f"{base}/memory/memory.limit_in_bytes", str(4 * GIB))
    epyc.write(f"{base}/memory/memory.usage_in_bytes", str(2 * GIB))
    epyc.write(f"{base}/memory/memory.stat", f"total_inactive_file {GIB}\nx")
    found = limits(epyc)
    assert (found.cgroup.version, found.cpu_quota) == ("v1", 2)
    assert found.usable_cpus() == (8, 9)
    assert (found.memory_limit_bytes, found.memory_available_bytes) == (4 * GIB, 3 * GIB)


def test_version_1_tells_the_limit_of_ancestors_out_of_sight(epyc: RecordedTree) -> None:
    epyc.cgroup_v1("/", mount_root="/docker/abc")
    base = "sys/fs/cgroup/memory"
    epyc.write(f"{base}/memory.limit_in_bytes", "9223372036854771712")
    epyc.write(f"{base}/memory.stat", f"hierarchical_memory_limit {2 * GIB}")
    found = limits(epyc)
    assert found.memory_limit_bytes == 2 * GIB
    assert found.cgroup.memory_limit_source == f"/{base}/memory.stat"


def test_no_limit_is_written_in_three_ways(epyc: RecordedTree) -> None:
    epyc.cgroup_v1("/")
    base = "sys/fs/cgroup"
    epyc.write(f"{base}/cpu,cpuacct/cpu.cfs_quota_us", "-1")
    epyc.write(f"{base}/cpu,cpuacct/cpu.cfs_period_us", "100000")
    epyc.write(f"{base}/memory/memory.limit_in_bytes", "9223372036854771712")
    found = limits(epyc)
    assert (found.cpu_quota, found.memory_limit_bytes) == (None, None)
    epyc.cgroup_v2("/")
    epyc.write(f"{base}/memory.max", "max")
    epyc.write(f"{base}/cpu.max", "max 100000")
    found = limits(epyc)
    assert (found.cpu_quota, found.memory_limit_bytes) == (None, None)


def test_a_limit_above_the_machine_is_no_limit(box: RecordedTree) -> None:
    box.cgroup_v2("/")
    box.write("sys/fs/cgroup/memory.max", str(8 * GIB))
    assert limits(box).memory_limit_bytes is None
    box.write("sys/fs/cgroup/memory.max", str(8 * GIB - 4096))
    assert limits(box).memory_limit_bytes == 8 * GIB - 4096


@pytest.mark.parametrize(
    ("quota", "num_cpus"),
    [("10000", 1), ("99999", 1), ("100000", 1), ("199999", 1), ("200000", 2), ("900000", 4)],
)
def test_the_quota_is_rounded_down_but_leaves_a_core(
    box: RecordedTree, quota: str, num_cpus: int
) -> None:
    box.cgroup_v2("/")
    box.write("sys/fs/cgroup/cpu.max", f"{quota} 100000")
    assert len(limits(box).usable_cpus()) == num_cpus


@pytest.mark.parametrize("own", ["/../../elsewhere", "/not/shown/here", "/"])
def test_a_group_out_of_sight_is_read_at_the_top_of_the_mount(box: RecordedTree, own: str) -> None:
    box.cgroup_v2(own)
    box.write("sys/fs/cgroup/cpu.max", "200000 100000")
    assert read_cgroup_limits(Tree(box.root)).cpu_quota == 2


def test_a_group_with_the_mounts_name_as_prefix_is_not_below_it(box: RecordedTree) -> None:
    box.cgroup_v2("/podium", mount_root="/pod")
    box.write("sys/fs/cgroup/ium/cpu.max", "100000 100000")
    assert read_cgroup_limits(Tree(box.root)).cpu_quota is None


def test_without_control_groups_nothing_is_limited(box: RecordedTree) -> None:
    found = limits(box)
    assert (found.cgroup.version, found.cpuset, found.cpu_quota) == ("none", None, None)
    assert found.memory_available_bytes == 4 * GIB


def test_an_affinity_that_names_no_online_cpu_is_ignored_and_says_so(box: RecordedTree) -> None:
    box.status("64-67")
    found = limits(box)
    assert found.usable_cpus() == (0, 1, 2, 3)
    assert found.selection[1].remark.startswith("ignored")


def test_without_available_memory_the_free_memory_counts(box: RecordedTree) -> None:
    box.write("proc/meminfo", "MemTotal: 4096 kB\nMemFree: 1024 kB")
    assert limits(box).memory_available_bytes == 1 << 20


@pytest.mark.parametrize(
    ("name", "affinity", "num_used"),
    [
        ("graviton3", range(64), 63),
        ("graviton3", range(16), 15),
        ("graviton3", range(15), 15),
        ("epyc-7h12-2s", range(256), 128),  # siblings take the server's threads
        ("epyc-7h12-2s", range(128), 127),  # here they may not
    ],
)
def test_a_core_is_left_to_the_server_where_there_are_many_and_no_siblings(
    name: str, affinity: range, num_used: int
) -> None:
    steps = select_cpus(load_machine(name).topology, tuple(affinity), None, None)
    assert len(steps[-1].cpus) == num_used
    assert ("server" in steps[-1].remark) is (num_used % 2 == 1 and len(affinity) > 15)


@pytest.mark.parametrize(
    ("quota", "num_used"), [(15, 15), (32, 31), (32.9, 31), (64, 63), (128, 127), (129, 128)]
)
def test_a_core_is_left_to_the_server_where_the_quota_has_no_time_for_siblings(
    quota: float, num_used: int
) -> None:
    rome = load_machine("epyc-7h12-2s").topology
    assert len(select_cpus(rome, rome.cpus, None, quota)[-1].cpus) == num_used
