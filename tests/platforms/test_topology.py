"""CPU information, caches and the tree of sockets, nodes, groups and cores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from platforms.cpuinfo import read_cpu_info
from platforms.machine import Machine
from platforms.probe import probe
from platforms.sysfs import Tree, format_cpu_list

if TYPE_CHECKING:
    from tests.platforms.conftest import RecordedTree


def groups(machine: Machine) -> list[tuple[str, str]]:
    return [(g.shared, format_cpu_list(g.cpus)) for g in machine.topology.groups()]


def cores(machine: Machine) -> list[str]:
    return [format_cpu_list(core.cpus) for core in machine.topology.cores()]


def caches(machine: Machine) -> list[tuple[str, int | None, int]]:
    return [(c.name, c.nbytes and c.nbytes >> 10, len(c.instances)) for c in machine.caches]


def test_a_two_socket_epyc_is_a_tree_of_ccxs(epyc: RecordedTree) -> None:
    machine = probe(epyc.root)
    assert machine.cpu_model == "AMD EPYC 7H12 64-Core Processor"
    assert machine.isa == "avx2"
    assert [len(socket.nodes) for socket in machine.topology.sockets] == [1, 1]
    assert [node.distances for node in machine.topology.nodes()] == [(10, 32), (32, 10)]
    assert [node.memory_bytes for node in machine.topology.nodes()] == [256 << 30] * 2
    assert groups(machine) == [
        ("L3", "0-3,16-19"),
        ("L3", "4-7,20-23"),
        ("L3", "8-11,24-27"),
        ("L3", "12-15,28-31"),
    ]
    assert cores(machine)[:2] == ["0,16", "1,17"]
    assert caches(machine) == [("L1d", 32, 16), ("L2", 512, 16), ("L3", 16384, 4)]
    assert machine.topology.node_of(24) == 1
    assert machine.cache_bytes(3) == 16 << 20


def test_a_hybrid_laptop_has_two_shapes_of_small_caches(laptop: RecordedTree) -> None:
    machine = probe(laptop.root)
    assert caches(machine) == [
        ("L1d", 48, 2),
        ("L1d", 32, 4),
        ("L2", 1280, 2),
        ("L2", 2048, 1),
        ("L3", 12288, 1),
    ]
    assert cores(machine) == ["0-1", "2-3", "4", "5", "6", "7"]
    assert groups(machine) == [("L3", "0-7")]
    assert (machine.cache_bytes(1, 0), machine.cache_bytes(1, 4)) == (48 << 10, 32 << 10)


def test_cores_without_the_l3_of_the_others_are_a_group_of_their_own(laptop: RecordedTree) -> None:
    for cpu in (6, 7):
        (laptop.path / f"sys/devices/system/cpu/cpu{cpu}/cache/index3/level").unlink()
        laptop.write(f"sys/devices/system/cpu/cpu{cpu}/cache/index2/shared_cpu_list", "6-7")
    for cpu in range(6):
        laptop.write(f"sys/devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list", "0-5")
    for cpu in (4, 5):
        laptop.write(f"sys/devices/system/cpu/cpu{cpu}/cache/index2/shared_cpu_list", "4-5")
    assert groups(probe(laptop.root)) == [("L3", "0-5"), ("L2", "6-7")]


def test_arm_clusters_split_a_shared_l3(kunpeng: RecordedTree) -> None:
    machine = probe(kunpeng.root)
    assert (machine.arch, machine.cpu_model, machine.isa) == ("aarch64", "Kunpeng-920", "neon")
    assert groups(machine) == [
        ("cluster", "0-3"),
        ("cluster", "4-7"),
        ("cluster", "8-11"),
        ("cluster", "12-15"),
    ]
    assert len(machine.topology.sockets) == 1
    assert [node.node_id for node in machine.topology.nodes()] == [0, 1]


def test_a_box_without_node_or_cache_folders_is_one_node(box: RecordedTree) -> None:
    machine = probe(box.root)
    assert [node.node_id for node in machine.topology.nodes()] == [0]
    assert groups(machine) == [("node", "0-3")]
    assert machine.caches == ()
    assert machine.cache_bytes(2) is None
    assert machine.isa == "avx512"


def test_a_shared_l2_is_the_last_level_where_there_is_no_l3(box: RecordedTree) -> None:
    for cpu in range(4):
        pair = "0-1" if cpu < 2 else "2-3"
        box.cpu(cpu, str(cpu), 0, {"L1d": ("32K", str(cpu)), "L2": ("1M", pair)})
    assert groups(probe(box.root)) == [("L2", "0-1"), ("L2", "2-3")]


def test_private_caches_alone_make_no_groups(box: RecordedTree) -> None:
    for cpu in range(4):
        box.cpu(cpu, str(cpu), 0, {"L1d": ("32K", str(cpu)), "L2": ("1M", str(cpu))})
    assert groups(probe(box.root)) == [("node", "0-3")]


def test_a_cache_of_unknown_size_still_groups_its_cores(box: RecordedTree) -> None:
    for cpu in range(4):
        box.cpu(cpu, str(cpu), 0, {"L3": ("", "0-1" if cpu < 2 else "2-3")})
    machine = probe(box.root)
    assert groups(machine) == [("L3", "0-1"), ("L3", "2-3")]
    assert machine.caches[0].nbytes is None


def test_offline_cpus_are_named_and_left_out(epyc: RecordedTree) -> None:
    epyc.cpus("0-2,4-15,20-31", "3,16-19")
    machine = probe(epyc.root)
    assert machine.topology.offline == (3, 16, 17, 18, 19)
    assert cores(machine)[:4] == ["0", "1", "2", "4,20"]
    assert machine.caches[-1].instances[0] == (0, 1, 2)


def test_a_node_of_memory_without_cpus_is_kept_apart(epyc: RecordedTree) -> None:
    epyc.node(2, "", 128 << 20, "20 40 10")
    topology = probe(epyc.root).topology
    assert [node.node_id for node in topology.nodes()] == [0, 1]
    assert [node.memory_bytes for node in topology.cpuless_nodes] == [128 << 30]


def test_an_l3_cut_by_nodes_gives_a_group_in_each(kunpeng: RecordedTree) -> None:
    for cpu in range(16):
        base = f"sys/devices/system/cpu/cpu{cpu}"
        kunpeng.write(f"{base}/cache/index3/shared_cpu_list", "0-15")
        kunpeng.write(f"{base}/topology/cluster_cpus_list", str(cpu))
    assert groups(probe(kunpeng.root)) == [("L3", "0-7"), ("L3", "8-15")]


def test_a_cpu_that_does_not_exist_has_no_node(box: RecordedTree) -> None:
    with pytest.raises(KeyError, match="CPU 9"):
        probe(box.root).topology.node_of(9)


def test_features_are_those_that_all_cpus_have(tree: RecordedTree) -> None:
    tree.write(
        "proc/cpuinfo",
        "processor: 0\nvendor_id: X\nflags: fma avx\n\nprocessor: 1\nvendor_id: X\nflags: avx sse2",
    )
    info = read_cpu_info(Tree(tree.root))
    assert info.flags == {"avx"}
    assert info.processors == (0, 1)


def test_big_and_little_arm_cores_are_both_named(tree: RecordedTree) -> None:
    tree.cpuinfo_arm([(0x41, 0xD05)] * 2 + [(0x41, 0xD0B)] * 2 + [(0x41, 0x123)])
    assert read_cpu_info(Tree(tree.root)).model == "Cortex-A55 + Cortex-A76 + ARM 0x41:0x123"


def test_an_empty_tree_is_one_generic_core(tree: RecordedTree) -> None:
    machine = probe(tree.root)
    assert (machine.isa, machine.usable_cpus()) == ("generic", (0,))
    assert machine.limits.memory_limit_bytes is None
