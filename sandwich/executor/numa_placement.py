"""Which bytes of the weights and of the KV cache belong on which NUMA node, and whether they are
there.

A byte belongs where the core is that reads it in every decode step, which is bound by memory: each
core's panels of every matrix, each core's KV heads.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from codegen.cores.shares import share
from codegen.layout.model import KvLayout, ModelLayout
from platforms.machine import Machine
from platforms.memory import Arena
from platforms.placement import NodeRange
from platforms.sysfs import format_cpu_list

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """The ranges of the two big arenas that belong somewhere, sorted; the rest of them, and the
    workspace, which all cores share, is interleaved between `nodes`. No nodes: nothing is placed.
    """

    nodes: tuple[int, ...] = ()
    weights: tuple[NodeRange, ...] = ()
    cache: tuple[NodeRange, ...] = ()

    def render(self) -> str:
        """For the start-up print."""
        nodes = f"node{'' if len(self.nodes) == 1 else 's'} {format_cpu_list(self.nodes)}"
        if not self.weights:
            return f"interleaved between {nodes}, because cores are not pinned"
        return f"weights by panel and KV cache by head on {nodes}, where they are read"


NOT_PLACED = Placement()


def place(
    machine: Machine,
    cpus: Sequence[int],
    layout: ModelLayout,
    kv: KvLayout,
    is_pinned: bool = True,
) -> Placement:
    """The placement for a plan whose cores are `cpus`; nothing on a machine with a single node.

    Where cores are not pinned, nobody knows who reads what: everything is interleaved.
    """
    home_of = home_nodes(machine)
    if len({*home_of.values()}) <= 1:
        return NOT_PLACED
    homes = [home_of[cpu] for cpu in cpus]
    nodes = tuple(sorted(set(homes)))
    if not is_pinned:
        return Placement(nodes)
    return Placement(nodes, tuple(_weight_ranges(layout, homes)), tuple(_cache_ranges(kv, homes)))


def home_nodes(machine: Machine) -> Mapping[int, int]:
    """CPU -> the nearest node that has memory this process may use."""
    topology = machine.topology
    nodes = [*topology.nodes(), *topology.cpuless_nodes]
    ids = sorted({node.node_id for node in nodes})
    allowed = set(machine.limits.memory_nodes)
    usable = [n.node_id for n in nodes if n.node_id in allowed and n.memory_bytes != 0] or ids

    home_of = {}
    for node in topology.nodes():
        distances = dict(zip(ids, node.distances, strict=False))
        distances[node.node_id] = 0
        home = min(usable, key=lambda other: distances.get(other, 255))
        home_of.update(dict.fromkeys(node.cpus, home))
    return home_of


def _weight_ranges(layout: ModelLayout, homes: Sequence[int]) -> Iterator[NodeRange]:
    """Of the matrices, with their scales, in an arena that is filled in the order of the specs."""
    for tensor in layout.placed_tensors():
        if tensor.matrix is None:
            continue
        panels = tensor.matrix.panels
        nbytes = tensor.spec.nbytes // tensor.num_matrices
        for index in range(tensor.num_matrices):
            start = tensor.offset + index * nbytes
            for node, first, last in _shares(homes, panels.num_panels):
                begin, end = (
                    min(panel * panels.panel, panels.n_padded) * nbytes // panels.n_padded
                    for panel in (first, last)
                )
                yield NodeRange(start + begin, start + end, (node,))


def _cache_ranges(kv: KvLayout, homes: Sequence[int]) -> Iterator[NodeRange]:
    """Of keys, then values. A head whose readers are on two nodes has its blocks shared out."""
    at = 0
    num_blocks = kv.num_kv_heads * kv.num_blocks  # of one layer
    for spec in kv.tensor_specs().values():
        block_nbytes = spec.nbytes // (kv.num_layers * num_blocks)
        for layer in range(kv.num_layers):
            start = at + layer * num_blocks * block_nbytes
            for node, first, last in _shares(homes, num_blocks):
                begin, end = start + first * block_nbytes, start + last * block_nbytes
                yield NodeRange(begin, end, (node,))
        at += spec.arena_nbytes


def _shares(homes: Sequence[int], count: int) -> Iterator[tuple[int, int, int]]:
    """(node, first, one past the last) of `count` items, for each run of cores on one node."""
    num_cores = len(homes)
    for node, run in groupby(range(num_cores), key=lambda core: homes[core]):
        cores = list(run)
        first = share(cores[0], num_cores, count)[0]
        last = share(cores[-1], num_cores, count)[1]
        if first < last:
            yield node, first, last


def report(arena: Arena, ranges: Sequence[NodeRange]) -> None:
    """Log on what pages a filled arena lies and, if it was placed, how much of it is where its
    readers are.
    """
    kind = "explicit" if arena.has_explicit_pages else "transparent"
    huge_nbytes = min(arena.huge_page_bytes(), arena.nbytes)
    text = f"{100 * huge_nbytes / max(arena.nbytes, 1):.3g} % on {kind} huge pages"
    if ranges and (count := arena.count_pages(ranges)):
        text += f"; {count.percent_at_home:.3g} % of its pages are where their readers are"
        text += f" ({count.render()})"
    _log.info("memory   %s: %s", arena.name, text)
