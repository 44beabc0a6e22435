"""The tree of a machine: sockets > NUMA nodes > LLC groups > physical cores > SMT siblings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from platforms.caches import Cache
from platforms.sysfs import CpuList, Tree

_CPU = "sys/devices/system/cpu"
_NODE = "sys/devices/system/node"
# Where Linux lists the kinds of cores of an Intel hybrid CPU.
_CORE_KINDS = {"core": "cpu_core", "atom": "cpu_atom", "lowpower": "cpu_lowpower"}


@dataclass(frozen=True)
class Core:
    """A physical core."""

    cpus: CpuList  # its online SMT siblings, primary first
    kind: str  # on Intel hybrids "core", "atom" or "lowpower"; else ""
    capacity: int | None  # the scheduler's measure, 1024 for the fastest core of the machine
    max_khz: int | None


@dataclass(frozen=True)
class LlcGroup:
    """Cores that share their last level of cache: a CCX, a slice of a socket, an ARM cluster."""

    shared: str  # what they share: "L3", "L2", "cluster", or "node" where no cache is known
    cache_bytes: int | None
    cores: tuple[Core, ...]

    @property
    def cpus(self) -> CpuList:
        return tuple(sorted(cpu for core in self.cores for cpu in core.cpus))


@dataclass(frozen=True)
class NumaNode:
    """A NUMA node, or its part in one socket. Memory without CPUs is a node without groups."""

    node_id: int
    memory_bytes: int | None
    distances: tuple[int, ...]  # to every node, in the order of their ids; empty where unknown
    groups: tuple[LlcGroup, ...]

    @property
    def cpus(self) -> CpuList:
        return tuple(sorted(cpu for group in self.groups for cpu in group.cpus))


@dataclass(frozen=True)
class Socket:
    """A processor package."""

    socket_id: int
    nodes: tuple[NumaNode, ...]


@dataclass(frozen=True)
class Topology:
    """The whole machine; children are in the order of their ids and first CPUs."""

    sockets: tuple[Socket, ...]
    cpuless_nodes: tuple[NumaNode, ...]
    offline: CpuList

    def nodes(self) -> Iterator[NumaNode]:
        return (node for socket in self.sockets for node in socket.nodes)

    def groups(self) -> Iterator[LlcGroup]:
        return (group for node in self.nodes() for group in node.groups)

    def cores(self) -> Iterator[Core]:
        return (core for group in self.groups() for core in group.cores)

    @property
    def cpus(self) -> CpuList:
        """Every online CPU."""
        return tuple(sorted(cpu for core in self.cores() for cpu in core.cpus))

    def node_of(self, cpu: int) -> int:
        """The id of the NUMA node a CPU belongs to. Raises KeyError for one that is not online."""
        for node in self.nodes():
            if cpu in node.cpus:
                return node.node_id
        raise KeyError(f"CPU {cpu} is not online")


class _Place(NamedTuple):
    """Where a core belongs; sorting places gives the order of the tree."""

    socket_id: int
    node_id: int
    group: tuple[int, str, int | None]  # first CPU, what is shared, its size
    core: Core


def read_online(tree: Tree, processors: CpuList) -> CpuList:
    """The online CPUs, from sysfs, else those that /proc/cpuinfo lists, else one."""
    return tree.read_cpu_list(f"{_CPU}/online") or processors or (0,)


def read_topology(tree: Tree, online: CpuList, arch: str, caches: tuple[Cache, ...]) -> Topology:
    node_of: dict[int, int] = {}
    node_ids = tree.numbered(_NODE, "node")
    for node_id in node_ids:
        for cpu in tree.read_cpu_list(f"{_NODE}/node{node_id}/cpulist") or ():
            node_of[cpu] = node_id
    cores = _read_cores(tree, online)
    group_of = _group_finder(tree, arch, cores, caches)
    places = [
        _Place(
            max(0, tree.read_int(f"{_CPU}/cpu{core.cpus[0]}/topology/physical_package_id") or 0),
            node_of.get(core.cpus[0], 0),
            group_of(core),
            core,
        )
        for core in cores
    ]
    places.sort(key=lambda place: (*place[:2], place.group[0], place.core.cpus))
    used = {place.node_id for place in places}
    return Topology(
        sockets=tuple(
            Socket(socket_id, _nodes(tree, list(members)))
            for socket_id, members in groupby(places, key=lambda place: place.socket_id)
        ),
        cpuless_nodes=tuple(_node(tree, n, ()) for n in node_ids if n not in used),
        offline=tree.read_cpu_list(f"{_CPU}/offline") or (),
    )


def _read_cores(tree: Tree, online: CpuList) -> list[Core]:
    kind_of: dict[int, str] = {}
    for kind, device in _CORE_KINDS.items():
        for cpu in tree.read_cpu_list(f"sys/devices/{device}/cpus") or ():
            kind_of[cpu] = kind
    cores = []
    seen: set[int] = set()
    for cpu in online:
        if cpu in seen:
            continue
        base = f"{_CPU}/cpu{cpu}"
        siblings = set(tree.read_cpu_list(f"{base}/topology/thread_siblings_list") or ()) | {cpu}
        cpus = tuple(c for c in online if c in siblings)
        seen.update(cpus)
        capacity = tree.read_int(f"{base}/cpu_capacity")
        max_khz = tree.read_int(f"{base}/cpufreq/cpuinfo_max_freq")
        cores.append(Core(cpus, kind_of.get(cpu, ""), capacity, max_khz))
    return cores


def _group_finder(
    tree: Tree, arch: str, cores: list[Core], caches: tuple[Cache, ...]
) -> Callable[[Core], tuple[int, str, int | None]]:
    """A function from a core to the group it belongs to within its node."""
    num_siblings = {cpu: len(core.cpus) for core in cores for cpu in core.cpus}
    shared_by: dict[tuple[int, int], tuple[CpuList, int | None]] = {}
    for cache in caches:
        for instance in cache.instances:
            shared_by.update(((cache.level, cpu), (instance, cache.nbytes)) for cpu in instance)

    def group_of(core: Core) -> tuple[int, str, int | None]:
        cpu = core.cpus[0]
        cluster = _read_cluster(tree, cpu) if arch == "aarch64" else ()
        if (3, cpu) in shared_by:
            instance, nbytes = shared_by[3, cpu]
            # Kunpeng's L3 spans a die, but each cluster of four cores has its own tags and port.
            # On x86 the kernel's clusters are cores with a common L2, deeper than what is meant.
            if num_siblings[cpu] < len(cluster) < len(instance):
                return cluster[0], "cluster", None
            return instance[0], "L3", nbytes
        instance, nbytes = shared_by.get((2, cpu), ((), None))
        if len(instance) > num_siblings[cpu]:
            return instance[0], "L2", nbytes
        if len(cluster) > num_siblings[cpu]:
            return cluster[0], "cluster", None
        return -1, "node", None

    return group_of


def _read_cluster(tree: Tree, cpu: int) -> CpuList:
    return tree.read_cpu_list(f"{_CPU}/cpu{cpu}/topology/cluster_cpus_list") or ()


def _nodes(tree: Tree, places: list[_Place]) -> tuple[NumaNode, ...]:
    nodes = []
    for node_id, members in groupby(places, key=lambda place: place.node_id):
        groups = []
        for (_, shared, nbytes), places_of_group in groupby(members, key=lambda p: p.group):
            groups.append(LlcGroup(shared, nbytes, tuple(p.core for p in places_of_group)))
        nodes.append(_node(tree, node_id, tuple(groups)))
    return tuple(nodes)


def _node(tree: Tree, node_id: int, groups: tuple[LlcGroup, ...]) -> NumaNode:
    distances = (tree.read(f"{_NODE}/node{node_id}/distance") or "").split()
    return NumaNode(
        node_id=node_id,
        memory_bytes=_node_memory(tree, node_id),
        distances=tuple(int(d) for d in distances if d.isdecimal()),
        groups=groups,
    )


def _node_memory(tree: Tree, node_id: int) -> int | None:
    for line in (tree.read(f"{_NODE}/node{node_id}/meminfo") or "").splitlines():
        words = line.split()  # Node 0 MemTotal: 24684096 kB
        if len(words) == 5 and words[2] == "MemTotal:":
            return int(words[3]) << 10
    return None
