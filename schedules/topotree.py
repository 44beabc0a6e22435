"""The TopoTree: the usable part of a machine as a tree of values, and the core sets cut from it.

machine > socket > NUMA node > LLC group > core > SMT thread. Two pure functions make one tree of
another: `group` declares subtrees to be partitions, `remove` keeps some children of every node of a
level. Applied in turn they enumerate the candidates for a plan, partial ones included (Sandwich,
arXiv 2507.18454).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import groupby

from codegen.spec import Groups
from platforms.machine import Machine
from platforms.sysfs import format_cpu_list
from platforms.topology import Core, LlcGroup, NumaNode, Socket, Topology

MAX_CORE_COUNTS = 32  # numbers of cores per LLC group to try; larger groups are tried in steps


class Level(IntEnum):
    """The levels of the tree from the top down."""

    MACHINE = 0
    SOCKET = 1
    NODE = 2
    GROUP = 3
    CORE = 4
    THREAD = 5


@dataclass(frozen=True)
class TopoTree:
    """A node of the tree with all that is below it. No node but a thread is without children.

    number: of a socket, NUMA node or thread as the kernel counts them; of a core or LLC group, its
    first CPU. is_partition: its cores own a contiguous share of every split.
    """

    level: Level
    number: int
    children: tuple[TopoTree, ...] = ()
    is_partition: bool = False

    @staticmethod
    def of(
        machine: Machine,
        cpus: Sequence[int] | None = None,
        groups: Sequence[Sequence[int]] = (),
    ) -> TopoTree:
        """The tree of a machine's usable CPUs, or of these ones, each of which must be online.

        groups: CPUs that were found to be close to each other; LLC groups are cut to fit them.
        """
        kept = frozenset(machine.usable_cpus() if cpus is None else cpus)
        tree = _grow(Level.MACHINE, refined(machine.topology, groups), kept)
        assert tree is not None, "no CPU is kept"
        assert len(tree.cpus) == len(kept), "a CPU is not online"
        return tree

    def at(self, level: Level) -> Iterator[TopoTree]:
        """Every node of a level, in order; none above this one."""
        if self.level == level:
            yield self
        elif self.level < level:
            for child in self.children:
                yield from child.at(level)

    @property
    def cpus(self) -> tuple[int, ...]:
        """The threads in the order of the tree: neighbours share as much as possible."""
        return tuple(thread.number for thread in self.at(Level.THREAD))

    @property
    def partitions(self) -> tuple[tuple[int, ...], ...]:
        """CPUs of the topmost partitions, in order; the whole tree is one if none is declared."""

        def topmost(tree: TopoTree) -> Iterator[TopoTree]:
            if tree.is_partition:
                yield tree
            else:
                for child in tree.children:
                    yield from topmost(child)

        return tuple(partition.cpus for partition in topmost(self)) or (self.cpus,)

    @property
    def is_symmetric(self) -> bool:
        """Whether all nodes of a level have equally many children, at every level."""
        return all(len({len(node.children) for node in self.at(level)}) <= 1 for level in Level)

    def count(self, level: Level) -> int:
        """Number of nodes of a level."""
        return sum(1 for _ in self.at(level))


def refined(topology: Topology, groups: Sequence[Sequence[int]]) -> Topology:
    """The topology with every LLC group cut into the parts that `groups` make of it.

    It hides what they say of several LLC groups; cores that are in none of them stay together.
    """
    group_of = {cpu: i for i, cpus in enumerate(groups) for cpu in cpus}

    def parts(llc: LlcGroup) -> Iterator[LlcGroup]:
        by_group: dict[int | None, list[Core]] = {}
        for core in llc.cores:
            found = next((group_of[cpu] for cpu in core.cpus if cpu in group_of), None)
            by_group.setdefault(found, []).append(core)
        return (replace(llc, cores=tuple(cores)) for cores in by_group.values())

    def cut(node: NumaNode) -> NumaNode:
        return replace(node, groups=tuple(part for llc in node.groups for part in parts(llc)))

    sockets = (replace(s, nodes=tuple(map(cut, s.nodes))) for s in topology.sockets)
    return replace(topology, sockets=tuple(sockets))


_Part = Topology | Socket | NumaNode | LlcGroup | Core | int


def _grow(level: Level, part: _Part, kept: frozenset[int]) -> TopoTree | None:
    """The tree below a part of the topology; None if nothing of it is kept."""
    if isinstance(part, int):
        return TopoTree(level, part) if part in kept else None
    number, parts = _number_and_parts(part)
    below = (_grow(Level(level + 1), child, kept) for child in parts)
    children = tuple(child for child in below if child)
    return TopoTree(level, number, children) if children else None


def _number_and_parts(
    part: Topology | Socket | NumaNode | LlcGroup | Core,
) -> tuple[int, Sequence[_Part]]:
    match part:
        case Topology():
            return 0, part.sockets
        case Socket():
            return part.socket_id, part.nodes
        case NumaNode():
            return part.node_id, part.groups
        case LlcGroup():
            return part.cpus[0], part.cores
        case Core():
            return part.cpus[0], part.cpus


def group(tree: TopoTree, level: Level) -> TopoTree:
    """The tree with every subtree of a level a partition, and nothing else one."""
    is_here = tree.level == level
    children = tuple(group(child, level) for child in tree.children)
    return replace(tree, is_partition=is_here, children=children)


def remove(
    tree: TopoTree,
    level: Level,
    keep: int,
    where: Callable[[TopoTree], bool] = lambda node: True,
) -> TopoTree:
    """The tree with `keep` children of every node of a level, or of those that `where` accepts.

    The largest children stay, the first of equals; a node with fewer keeps all it has.
    """
    assert keep >= 1, keep
    if tree.level < level:
        children = tuple(remove(child, level, keep, where) for child in tree.children)
    elif where(tree):
        by_size = sorted(tree.children, key=lambda child: -child.count(Level.THREAD))
        children = tuple(child for child in tree.children if child in by_size[:keep])
    else:
        return tree
    return tree if children == tree.children else replace(tree, children=children)


@dataclass(frozen=True)
class Candidate:
    """A set of cores for a plan. groups: the same CPUs by LLC group, in the order of `cpus`."""

    name: str
    cpus: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]


def candidates(tree: TopoTree) -> tuple[Candidate, ...]:
    """Core sets to choose from, each different, all cores first; symmetric if the tree is.

    For each number of sockets, nodes per socket and LLC groups per node among all, half of them
    and so on down to one, every number of cores per LLC group; one thread per core or all.
    """
    found: dict[frozenset[int], Candidate] = {}
    for kept in _removals(group(tree, Level.GROUP), Level.MACHINE):
        cpus = kept.cpus
        if frozenset(cpus) not in found:
            found[frozenset(cpus)] = Candidate(_name(tree, kept), cpus, kept.partitions)
    return tuple(found.values())


def named_candidate(name: str, topology: Topology, cpus: Sequence[int]) -> Candidate:
    """These CPUs in the order given, each of which must be online."""
    home = {cpu: llc.cpus[0] for llc in topology.groups() for cpu in llc.cpus}
    return Candidate(name, tuple(cpus), tuple(tuple(g) for _, g in groupby(cpus, home.__getitem__)))


def core_groups(machine: Machine, groups: Sequence[Sequence[int]]) -> Groups:
    """Numbers of cores of LLC groups, given as their CPUs, by NUMA node."""
    node_of = {cpu: node.node_id for node in machine.topology.nodes() for cpu in node.cpus}
    by_node = groupby(groups, lambda cpus: node_of[cpus[0]])
    return tuple(tuple(map(len, node)) for _, node in by_node)


def _removals(tree: TopoTree, level: Level) -> Iterator[TopoTree]:
    if level == Level.THREAD:
        yield tree
        return
    for keep in _counts(level, _widest(tree, level)):
        yield from _removals(remove(tree, level, keep), Level(level + 1))


def _counts(level: Level, largest: int) -> list[int]:
    """How many children to keep, the largest number first."""
    if level == Level.GROUP:
        step = -(-largest // MAX_CORE_COUNTS)
        return [*range(largest, 1, -step), 1]
    counts = [largest]
    while counts[-1] > 1:
        counts.append(counts[-1] // 2)
    return counts


def _widest(tree: TopoTree, level: Level) -> int:
    return max(len(node.children) for node in tree.at(level))


def _name(whole: TopoTree, kept: TopoTree) -> str:
    """What was kept where something was removed: "one node, 2 cores per LLC group"."""
    num_nodes = kept.count(Level.NODE)
    parts = []
    if num_nodes == 1 < whole.count(Level.NODE):
        parts.append("one node")
    else:
        if kept.count(Level.SOCKET) < whole.count(Level.SOCKET):
            parts.append(counted(kept.count(Level.SOCKET), "socket"))
        if _widest(kept, Level.SOCKET) < _widest(whole, Level.SOCKET):
            parts.append(f"{counted(_widest(kept, Level.SOCKET), 'node')} per socket")
    for level, noun, place in (
        (Level.NODE, "LLC group", "node"),
        (Level.GROUP, "core", "LLC group"),
        (Level.CORE, "thread", "core"),
    ):
        if _widest(kept, level) < _widest(whole, level):
            parts.append(f"{counted(_widest(kept, level), noun)} per {place}")
    return ", ".join(parts) or f"all {counted(whole.count(Level.CORE), 'core')}"


def counted(number: int, noun: str) -> str:
    """For people: "1 core", "2 cores"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def render(tree: TopoTree, uses: Mapping[str, Sequence[int]]) -> list[str]:
    """Lines of text, one for each LLC group with its CPUs and what each of `uses` takes of them."""
    shape = "alike at every level" if tree.is_symmetric else "uneven"
    lines = [f"tree     {counted(tree.count(Level.CORE), 'core')}, {shape}"]
    for socket in tree.at(Level.SOCKET):
        lines.append(f"socket {socket.number}")
        for node in socket.at(Level.NODE):
            lines.append(f"  node {node.number}")
            for llc in node.at(Level.GROUP):
                shares = [
                    f"{use} {format_cpu_list(set(llc.cpus) & set(cpus)) or '-'}"
                    for use, cpus in uses.items()
                ]
                lines.append(f"    LLC group {'  '.join([format_cpu_list(llc.cpus), *shares])}")
    return lines
