"""What the parts of a machine can do at most: the numbers that the cost model multiplies.

They are estimates from published figures until they are measured. Knows nothing of models, steps
or plans.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from platforms.machine import Machine


@dataclass(frozen=True)
class MachineRates:
    """Limits of a core, an LLC group and a NUMA node; all cores, groups and nodes are alike.

    A barrier is the one of TVM's thread pool (TVMBackendParallelBarrier): each core reads the
    counter of every other, so that its cost is that of fetching so many cache lines.
    """

    core_gflops: float  # GFLOP/s of one core in a GEMM with weights of the model's type
    core_gbps: float  # GB/s of memory that one core reads while the others are idle
    group_gbps: float  # GB/s of memory that the cores of one LLC group read together
    node_gbps: float  # GB/s that the memory of one NUMA node delivers
    link_gbps: float  # GB/s that the cores of one NUMA node read from all others
    group_line_ns: float  # ns until a line written by a core of the same LLC group is read
    node_line_ns: float  # the same for another group of the same NUMA node
    far_line_ns: float  # the same for another NUMA node
    lines_in_flight: float  # counters that a core fetches at a time
    barrier_base_us: float  # us of a barrier before the first line of another core

    def render(self) -> str:
        """One line for people."""
        return (
            f"{self.core_gflops:.0f} GFLOP/s a core; memory GB/s: {self.core_gbps:.3g} a core, "
            f"{self.group_gbps:.3g} an LLC group, {self.node_gbps:.3g} a node, "
            f"{self.link_gbps:.3g} between nodes; ns a line: {self.group_line_ns:.0f} in a group, "
            f"{self.node_line_ns:.0f} in a node, {self.far_line_ns:.0f} beyond"
        )


@dataclass(frozen=True)
class _Part:
    """Figures of a processor: its memory channels from the data sheet, the others as published."""

    pattern: str  # of the CPU model's name
    num_channels: int  # of memory, per socket
    mega_transfers: int  # per second and channel, of 8 bytes
    ghz: float  # all cores busy with vector arithmetic
    core_gbps: float
    group_gbps: float | None = None  # None: nothing tighter than the node
    num_fma_units: int = 2


# A Rome CCD reads 32 bytes per fabric clock of 1.467 GHz for two core complexes (AMD 56745); a
# Turin CCD, of one complex, at 2.0 GHz. The single-core figures are what STREAM-like reads reach;
# those of the Zen 4 guest and its clock were measured with `schedules/meters.py`; its 512-bit
# multiply-adds take both of its 256-bit units.
_PARTS = (
    _Part(r"Xeon.* Gold 61", 6, 2666, 2.7, 12),
    _Part(r"Xeon.* Platinum 82", 6, 2933, 2.6, 12),
    _Part(r"Xeon.* Platinum 83", 8, 3200, 2.9, 13),
    _Part(r"EPYC 7..2\b|EPYC 7H12", 8, 3200, 3.0, 20, group_gbps=23.5),
    _Part(r"EPYC 9..5\b", 12, 6000, 3.7, 33, group_gbps=64),
    _Part(r"AMD EPYC$", 12, 4800, 3.7, 33, group_gbps=60, num_fma_units=1),  # a guest on Zen 4
    _Part(r"Kunpeng-920", 8, 2933, 2.6, 10),
    _Part(r"Neoverse-V1", 8, 4800, 2.6, 25, num_fma_units=4),
    _Part(r"12th Gen.*i7", 2, 4800, 3.5, 25),
)
_UNKNOWN_GHZ = 2.5
_UNKNOWN_CORE_GBPS = 12.0

STREAM_FRACTION = 0.8  # of the channels' peak that reads of many cores reach
LINK_FRACTION = 0.5  # of a node's own bandwidth that its links to other nodes carry
GEMM_FRACTION = 0.85  # of the arithmetic peak that a packed GEMM reaches
# Median core to core latencies, github.com/nviennot/core-to-core-latency: 23 to 33 ns in a complex
# of 4 or 8 cores, 45 to 60 ns on a mesh, about 110 ns through an I/O die, 140 to 210 ns far away.
SMALL_GROUP = 8  # cores; larger LLC groups are a mesh
SMALL_GROUP_LINE_NS = 25.0
MESH_LINE_NS = 50.0
NODE_LINE_NS = 110.0
FAR_LINE_NS = 200.0
LINES_IN_FLIGHT = 4.0  # the branches that poll the counters are predicted, so that reads overlap
BARRIER_BASE_US = 0.1


def estimated_rates(machine: Machine, dtype: str) -> MachineRates:
    """The rates of a machine on which nothing was measured, for weights of `dtype`."""
    part = next((p for p in _PARTS if re.search(p.pattern, machine.cpu_model)), None)
    isa = machine.isa_row
    socket = machine.topology.sockets[0]
    nodes_per_socket = len(socket.nodes)
    groups = list(machine.topology.groups())
    if part is None:
        num_cores = sum(len(llc.cores) for node in socket.nodes for llc in node.groups)
        core_gbps, ghz, num_fma_units = _UNKNOWN_CORE_GBPS, _UNKNOWN_GHZ, 2
        socket_gbps = num_cores * core_gbps  # unknown memory is taken to be worth all cores
    else:
        core_gbps, ghz, num_fma_units = part.core_gbps, part.ghz, part.num_fma_units
        socket_gbps = part.num_channels * part.mega_transfers * 8e-3 * STREAM_FRACTION
    node_gbps = socket_gbps / nodes_per_socket
    group_gbps = part.group_gbps if part and part.group_gbps else node_gbps
    macs = isa.lanes * num_fma_units * (2 if isa.has_bf16_dot and dtype == "bfloat16" else 1)
    is_mesh = max(len(llc.cores) for llc in groups) > SMALL_GROUP
    return MachineRates(
        core_gflops=2 * macs * ghz * GEMM_FRACTION,
        core_gbps=core_gbps,
        group_gbps=group_gbps,
        node_gbps=node_gbps,
        link_gbps=node_gbps * LINK_FRACTION,
        group_line_ns=MESH_LINE_NS if is_mesh else SMALL_GROUP_LINE_NS,
        node_line_ns=NODE_LINE_NS,
        far_line_ns=FAR_LINE_NS,
        lines_in_flight=LINES_IN_FLIGHT,
        barrier_base_us=BARRIER_BASE_US,
    )
