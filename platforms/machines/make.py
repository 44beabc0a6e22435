"""Writes the records of machines that are described here from data sheets: `python -m` this module.

A description is a few numbers; what follows from them (numbering of CPUs, cache instances, limits
and their selection) is derived as the kernel and the probe would. Core counts, cache sizes and
nodes are those of the parts; memory sizes and the pod's limits are examples of common set-ups.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from platforms.caches import Cache
from platforms.cgroup import CgroupLimits
from platforms.hugepages import HugePagePool, HugePages
from platforms.isa import select_isa
from platforms.machine import Machine
from platforms.machines import machine_file
from platforms.process_limits import Limits, select_cpus
from platforms.sysfs import CpuList, parse_cpu_list
from platforms.topology import Core, LlcGroup, NumaNode, Socket, Topology

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_AVAILABLE = 0.97  # of the memory, on a machine that has just started

_AVX2 = (
    "fpu sse sse2 ht syscall nx lm pni pclmulqdq ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes "
    "xsave avx f16c rdrand lahf_lm abm bmi1 avx2 bmi2 adx"
)
_SKYLAKE = f"{_AVX2} avx512f avx512dq avx512cd avx512bw avx512vl"
_CASCADE_LAKE = f"{_SKYLAKE} avx512_vnni"
_ICE_LAKE = (
    f"{_CASCADE_LAKE} avx512ifma avx512vbmi avx512_vbmi2 avx512_bitalg avx512_vpopcntdq gfni"
)
_ZEN_5 = f"{_ICE_LAKE} avx_vnni avx512_bf16 avx512_vp2intersect sse4a"
_ARM_V8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm asimddp"


@dataclass(frozen=True)
class Cluster:
    """Cores that share a last level of cache, all of one kind."""

    num_cores: int
    num_threads: int = 1
    kind: str = ""
    max_khz: int | None = None
    l1d_bytes: int = 32 * _KIB
    l2_bytes: int = 512 * _KIB
    cores_per_l2: int = 1


@dataclass(frozen=True)
class Description:
    """A machine in a few numbers; sockets are alike, and so are the nodes in them."""

    name: str
    cpu_model: str
    arch: str
    flags: str
    num_sockets: int
    nodes_per_socket: int
    groups_per_node: int
    clusters: tuple[Cluster, ...]  # of one group
    l3_bytes: int  # of one instance
    node_bytes: int
    distances: tuple[tuple[int, ...], ...]
    shared: str = "L3"  # what the cores of a group share; "cluster": the node shares the L3
    are_siblings_adjacent: bool = False  # numbered 0, 1 and not 0, n
    cpu_max: float | None = None  # cores, as a pod's limit
    cpuset: str | None = None
    memory_limit_bytes: int | None = None

    @property
    def num_groups(self) -> int:
        return self.num_sockets * self.nodes_per_socket * self.groups_per_node

    def machine(self) -> Machine:
        """What a probe of such a machine would find."""
        groups = self._groups()
        topology = self._topology(groups)
        return Machine(
            arch=self.arch,
            cpu_model=self.cpu_model,
            isa=select_isa(self.flags.split(), "auto", self.arch).name,
            isa_features=frozenset(self.flags.split()),
            caches=self._caches(groups),
            topology=topology,
            hugepages=HugePages("madvise", "madvise", 2 * _MIB, False, _empty_pools()),
            limits=self._limits(topology),
        )

    def _groups(self) -> list[list[tuple[Cluster, Core]]]:
        """The cores of each group, numbered as Linux does: primaries first, then all siblings."""
        members = [cluster for cluster in self.clusters for _ in range(cluster.num_cores)]
        num_cores = len(members) * self.num_groups
        groups, next_cpu, next_sibling = [], 0, num_cores
        for _ in range(self.num_groups):
            group = []
            for cluster in members:
                cpus = [next_cpu]
                next_cpu += 1
                for _ in range(cluster.num_threads - 1):
                    if self.are_siblings_adjacent:
                        cpus.append(next_cpu)
                        next_cpu += 1
                    else:
                        cpus.append(next_sibling)
                        next_sibling += 1
                group.append((cluster, Core(tuple(cpus), cluster.kind, None, cluster.max_khz)))
            groups.append(group)
        return groups

    def _topology(self, groups: list[list[tuple[Cluster, Core]]]) -> Topology:
        nbytes = self.l3_bytes if self.shared == "L3" else None
        llcs = [LlcGroup(self.shared, nbytes, tuple(core for _, core in group)) for group in groups]
        nodes = [
            NumaNode(i, self.node_bytes, row, tuple(llcs[i * n : (i + 1) * n]))
            for n in [self.groups_per_node]
            for i, row in enumerate(self.distances)
        ]
        step = self.nodes_per_socket
        sockets = [Socket(i, tuple(nodes[i * step :][:step])) for i in range(self.num_sockets)]
        return Topology(tuple(sockets), (), ())

    def _caches(self, groups: list[list[tuple[Cluster, Core]]]) -> tuple[Cache, ...]:
        found: dict[tuple[int, str, int], list[CpuList]] = {}
        for group in groups:
            for cluster in self.clusters:
                cores = [core for member, core in group if member is cluster]
                for core in cores:
                    found.setdefault((1, "data", cluster.l1d_bytes), []).append(core.cpus)
                for first in range(0, len(cores), cluster.cores_per_l2):
                    shared = _cpus(cores[first : first + cluster.cores_per_l2])
                    found.setdefault((2, "unified", cluster.l2_bytes), []).append(shared)
        per_l3 = 1 if self.shared == "L3" else self.groups_per_node
        for first in range(0, len(groups), per_l3):
            cores = [core for group in groups[first : first + per_l3] for _, core in group]
            found.setdefault((3, "unified", self.l3_bytes), []).append(_cpus(cores))
        caches = [
            Cache(level, kind, nbytes, 64, tuple(instances))
            for (level, kind, nbytes), instances in found.items()
        ]
        return tuple(sorted(caches, key=lambda cache: (cache.level, cache.instances)))

    def _limits(self, topology: Topology) -> Limits:
        cpuset = None if self.cpuset is None else parse_cpu_list(self.cpuset)
        affinity = topology.cpus if cpuset is None else cpuset
        total = self.node_bytes * len(self.distances)
        available = int(_AVAILABLE * total)
        limit = self.memory_limit_bytes
        is_limited = limit is not None or self.cpu_max is not None
        return Limits(
            affinity=affinity,
            cgroup=CgroupLimits(
                version="v2" if is_limited else "none",
                cpuset=cpuset,
                cpu_quota=self.cpu_max,
                cpu_quota_source=None if self.cpu_max is None else "/sys/fs/cgroup/cpu.max",
                memory_limit_bytes=limit,
                memory_limit_source=None if limit is None else "/sys/fs/cgroup/memory.max",
                memory_headroom_bytes=limit,
            ),
            memory_nodes=tuple(range(len(self.distances))),
            memory_total_bytes=total,
            memory_limit_bytes=limit,
            memory_available_bytes=available if limit is None else min(available, limit),
            selection=select_cpus(topology, affinity, cpuset, self.cpu_max),
        )


def _cpus(cores: Iterable[Core]) -> CpuList:
    return tuple(sorted(cpu for core in cores for cpu in core.cpus))


def _empty_pools() -> tuple[HugePagePool, ...]:
    return (HugePagePool(2 * _MIB, 0, 0), HugePagePool(_GIB, 0, 0))


_L3_SLICE = 1408 * _KIB  # 1.375 MiB a core, of Skylake-SP and its successors
_TWO_NODES = ((10, 21), (21, 10))
_XEON_GOLD_6151 = Description(
    name="xeon-gold-6151-2s",
    cpu_model="Intel(R) Xeon(R) Gold 6151 CPU @ 3.00GHz",
    arch="x86_64",
    flags=_SKYLAKE,
    num_sockets=2,
    nodes_per_socket=1,
    groups_per_node=1,
    clusters=(Cluster(18, num_threads=2, max_khz=3_400_000, l2_bytes=_MIB),),
    l3_bytes=18 * _L3_SLICE,
    node_bytes=192 * _GIB,
    distances=_TWO_NODES,
)
DESCRIPTIONS = (
    _XEON_GOLD_6151,
    replace(
        _XEON_GOLD_6151,
        name="xeon-platinum-8272cl-2s",
        cpu_model="Intel(R) Xeon(R) Platinum 8272CL CPU @ 2.60GHz",
        flags=_CASCADE_LAKE,
        clusters=(Cluster(26, num_threads=2, max_khz=3_400_000, l2_bytes=_MIB),),
        l3_bytes=26 * _L3_SLICE,
    ),
    Description(
        name="epyc-7h12-2s",
        cpu_model="AMD EPYC 7H12 64-Core Processor",
        arch="x86_64",
        flags=f"{_AVX2} sse4a",
        num_sockets=2,
        nodes_per_socket=1,  # NPS1, the setting it is delivered with
        groups_per_node=16,  # core complexes
        clusters=(Cluster(4, num_threads=2, max_khz=3_300_000),),
        l3_bytes=16 * _MIB,
        node_bytes=256 * _GIB,
        distances=((10, 32), (32, 10)),
    ),
    Description(
        name="kunpeng-920-4826-2s",
        cpu_model="Kunpeng-920",
        arch="aarch64",
        flags=f"{_ARM_V8_2} jscvt fcma dcpop asimdfhm",
        num_sockets=2,
        nodes_per_socket=2,  # compute dies
        groups_per_node=6,
        clusters=(Cluster(4, max_khz=2_600_000, l1d_bytes=64 * _KIB),),
        l3_bytes=24 * _MIB,
        node_bytes=64 * _GIB,
        distances=((10, 12, 20, 22), (12, 10, 22, 24), (20, 22, 10, 12), (22, 24, 12, 10)),
        shared="cluster",
    ),
    Description(
        name="graviton3",
        cpu_model="Neoverse-V1",
        arch="aarch64",
        flags=f"{_ARM_V8_2} jscvt fcma lrcpc dcpop sha3 asimdfhm sve svei8mm svebf16 i8mm bf16",
        num_sockets=1,
        nodes_per_socket=1,
        groups_per_node=1,
        clusters=(Cluster(64, l1d_bytes=64 * _KIB, l2_bytes=_MIB),),
        l3_bytes=32 * _MIB,
        node_bytes=128 * _GIB,
        distances=((10,),),
    ),
    Description(
        name="epyc-9655",
        cpu_model="AMD EPYC 9655 96-Core Processor",
        arch="x86_64",
        flags=_ZEN_5,
        num_sockets=1,
        nodes_per_socket=1,
        groups_per_node=12,
        clusters=(Cluster(8, 2, max_khz=4_500_000, l1d_bytes=48 * _KIB, l2_bytes=_MIB),),
        l3_bytes=32 * _MIB,
        node_bytes=384 * _GIB,
        distances=((10,),),
    ),
    Description(
        name="core-i7-1260p",
        cpu_model="12th Gen Intel(R) Core(TM) i7-1260P",
        arch="x86_64",
        flags=f"{_AVX2} avx_vnni gfni",
        num_sockets=1,
        nodes_per_socket=1,
        groups_per_node=1,
        clusters=(
            Cluster(4, 2, "core", 4_700_000, l1d_bytes=48 * _KIB, l2_bytes=1280 * _KIB),
            Cluster(8, 1, "atom", 3_400_000, l2_bytes=2 * _MIB, cores_per_l2=4),
        ),
        l3_bytes=18 * _MIB,
        node_bytes=16 * _GIB,
        distances=((10,),),
        are_siblings_adjacent=True,
    ),
    Description(
        name="kubernetes-pod",
        cpu_model="Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz",
        arch="x86_64",
        flags=_ICE_LAKE,
        num_sockets=1,
        nodes_per_socket=1,
        groups_per_node=1,
        clusters=(Cluster(8, num_threads=2, l1d_bytes=48 * _KIB, l2_bytes=1280 * _KIB),),
        l3_bytes=54 * _MIB,
        node_bytes=64 * _GIB,
        distances=((10,),),
        cpu_max=5.5,
        cpuset="2-7,10-15",
        memory_limit_bytes=24 * _GIB,
    ),
)


def main() -> None:
    """Write every description's record."""
    for description in DESCRIPTIONS:
        machine_file(description.name).write_text(description.machine().to_json() + "\n")


if __name__ == "__main__":
    main()
