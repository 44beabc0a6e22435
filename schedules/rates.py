"""What the parts of a machine can do at most: the numbers that the cost model multiplies.

They are estimates from published figures until they are measured (schedules/calibration.py). Knows
nothing of models, steps or plans.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace

from codegen.spec import Phase, WeightFormat
from platforms.isa import IsaRow
from platforms.machine import Machine
from platforms.topology import Topology


@dataclass(frozen=True)
class Curve:
    """A function given by points (x, y) with ascending x: straight between them, flat outside."""

    points: tuple[tuple[float, float], ...]

    def at(self, x: float) -> float:
        """The value at `x`."""
        right = bisect_right(self.points, x, key=lambda point: point[0])
        if right == 0 or right == len(self.points):
            return self.points[max(0, right - 1)][1]
        (x0, y0), (x1, y1) = self.points[right - 1 : right + 1]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    @property
    def most(self) -> float:
        """The largest value of a point."""
        return max(y for _, y in self.points)


@dataclass(frozen=True)
class KernelRates:
    """What one core does in the kernels of a phase's program while its data are in its caches.

    ..._ns: nanoseconds a value in the operators between the matrices.
    """

    gemm_gflops: Curve  # GFLOP/s by rows of activations
    attention_gflops: float
    attention_unit_us: float  # of every KV head and query tile, whatever its keys
    embed_ns: float  # a value of the residual stream
    norm_ns: float  # the same
    rope_ns: float  # a value of queries, keys and values
    argmax_ns: float  # a logit


@dataclass(frozen=True)
class MachineRates:
    """Limits of a core, an LLC group and a NUMA node; all cores, groups and nodes are alike.

    A line is a cache line that one core has written and another reads; a barrier is made of them.
    """

    prefill: KernelRates
    decode: KernelRates
    busy_speed: Curve  # of a core, relative to one alone, by the number of busy cores
    group_gbps: Curve  # GB/s of memory that so many cores of one LLC group read together
    node_gbps: float  # GB/s that the memory of one NUMA node delivers
    link_gbps: float  # GB/s that the cores of one NUMA node read from all others
    group_line_ns: float  # ns until a line written by a core of the same LLC group is read
    node_line_ns: float  # the same for another group of the same NUMA node
    far_line_ns: float  # the same for another NUMA node
    barrier_lines: float  # lines that a barrier takes for each core that arrives at a point
    barrier_base_us: float  # us of a barrier before the first line of another core
    launch_us: float  # us of a step before its first operator and after its last
    is_measured: bool = False

    def kernels(self, phase: Phase) -> KernelRates:
        """The rates of the program of a phase."""
        return self.prefill if phase is Phase.PREFILL else self.decode

    @property
    def core_gbps(self) -> float:
        """GB/s of memory that one core reads while the others are idle."""
        return self.group_gbps.at(1)

    def as_sampled(self, num_cores: int, read_factor: float, speed: float) -> MachineRates:
        """The rates at a moment when `num_cores` cores read `read_factor` times as fast as these
        say, and each computes with `speed` of what one does alone.
        """
        points = tuple((x, y * read_factor) for x, y in self.group_gbps.points)
        return replace(
            self,
            busy_speed=Curve(((float(num_cores), speed),)),
            group_gbps=Curve(points),
            node_gbps=self.node_gbps * read_factor,
            link_gbps=self.link_gbps * read_factor,
        )

    def render(self, topology: Topology) -> str:
        """One line for people: what there is in a machine of this topology."""
        num_nodes, num_groups = (sum(1 for _ in p) for p in (topology.nodes(), topology.groups()))
        has_links, has_groups = num_nodes > 1, num_groups > num_nodes
        gbps = [f"{self.core_gbps:.3g} a core"]
        is_tighter = has_groups or self.group_gbps.most < self.node_gbps
        gbps += [f"{self.group_gbps.most:.3g} an LLC group"] if is_tighter else []
        gbps += [f"{self.node_gbps:.3g} a node"]
        gbps += [f"{self.link_gbps:.3g} between nodes"] if has_links else []
        lines = [f"{self.group_line_ns:.0f} in a group"]
        lines += [f"{self.node_line_ns:.0f} in a node"] if has_groups else []
        lines += [f"{self.far_line_ns:.0f} beyond"] if has_links else []
        return (
            f"{self.prefill.gemm_gflops.most:.0f} GFLOP/s a core; "
            f"memory GB/s: {', '.join(gbps)}; ns a line: {', '.join(lines)}"
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
    _Part(r"Xeon.* Platinum 84", 8, 4800, 2.6, 13),
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
# Fractions of the arithmetic peak that a GEMM of so many rows and attention reach, and cycles of
# the operators between the matrices. They are of the order that `sandwich probe --measure` finds on
# Zen 4, where GEMMs of a few rows reach up to half as much again; of other CPUs nothing is known.
GEMM_FRACTIONS = ((1, 0.2), (2, 0.35), (4, 0.6), (8, 0.75), (32, 0.85))
ATTENTION_FRACTION = 0.25
NORM_CYCLES, ROPE_CYCLES, ARGMAX_CYCLES = 12.0, 12.0, 8.0  # a vector
EMBED_CYCLES = 4.0  # a value, as rows lie across panels
ATTENTION_UNIT_US = 0.5
LAUNCH_US = 20.0
# Median core to core latencies, github.com/nviennot/core-to-core-latency: 23 to 33 ns in a complex
# of 4 or 8 cores, 45 to 60 ns on a mesh, about 110 ns through an I/O die, 140 to 210 ns far away.
SMALL_GROUP = 8  # cores; larger LLC groups are a mesh
SMALL_GROUP_LINE_NS = 25.0
MESH_LINE_NS = 50.0
NODE_LINE_NS = 110.0
FAR_LINE_NS = 200.0
BARRIER_LINES = 1.0  # arrivals at one point follow each other
BARRIER_BASE_US = 0.1


def estimated_rates(machine: Machine, weights: WeightFormat) -> MachineRates:
    """The rates of a machine on which nothing was measured."""
    part = next((p for p in _PARTS if re.search(p.pattern, machine.cpu_model)), None)
    socket = machine.topology.sockets[0]
    groups = list(machine.topology.groups())
    if part is None:
        num_cores = sum(len(llc.cores) for node in socket.nodes for llc in node.groups)
        core_gbps, ghz, num_fma_units = _UNKNOWN_CORE_GBPS, _UNKNOWN_GHZ, 2
        socket_gbps = num_cores * core_gbps  # unknown memory is taken to be worth all cores
    else:
        core_gbps, ghz, num_fma_units = part.core_gbps, part.ghz, part.num_fma_units
        socket_gbps = part.num_channels * part.mega_transfers * 8e-3 * STREAM_FRACTION
    node_gbps = socket_gbps / len(socket.nodes)
    group_gbps = part.group_gbps if part and part.group_gbps else node_gbps
    is_mesh = max(len(llc.cores) for llc in groups) > SMALL_GROUP
    kernels = _estimated_kernels(machine.isa_row, weights, ghz * num_fma_units, ghz)
    return MachineRates(
        prefill=kernels,
        decode=kernels,
        busy_speed=Curve(((1, 1.0),)),
        group_gbps=saturating(core_gbps, group_gbps),
        node_gbps=node_gbps,
        link_gbps=node_gbps * LINK_FRACTION,
        group_line_ns=MESH_LINE_NS if is_mesh else SMALL_GROUP_LINE_NS,
        node_line_ns=NODE_LINE_NS,
        far_line_ns=FAR_LINE_NS,
        barrier_lines=BARRIER_LINES,
        barrier_base_us=BARRIER_BASE_US,
        launch_us=LAUNCH_US,
    )


def saturating(core_gbps: float, group_gbps: float) -> Curve:
    """The bandwidth of a group whose cores read at their own rate until they fill its path."""
    enough = group_gbps / core_gbps
    if enough <= 1:
        return Curve(((1, group_gbps),))
    return Curve(((1, core_gbps), (enough, group_gbps)))


def _estimated_kernels(
    isa: IsaRow, weights: WeightFormat, vectors_per_ns: float, ghz: float
) -> KernelRates:
    """vectors_per_ns: of fp32 multiply-adds that one core begins."""
    fp32 = 2 * isa.lanes * vectors_per_ns
    points = tuple(
        (float(rows), fp32 * _macs_per_lane(isa, weights) * fraction)
        for rows, fraction in GEMM_FRACTIONS
    )
    has_pairs = isa.has_bf16_dot and weights.dtype != "float32"  # of keys and values
    values_per_ns = isa.lanes * ghz
    return KernelRates(
        gemm_gflops=Curve(points),
        attention_gflops=fp32 * (2 if has_pairs else 1) * ATTENTION_FRACTION,
        attention_unit_us=ATTENTION_UNIT_US,
        embed_ns=EMBED_CYCLES / ghz,
        norm_ns=NORM_CYCLES / values_per_ns,
        rope_ns=ROPE_CYCLES / values_per_ns,
        argmax_ns=ARGMAX_CYCLES / values_per_ns,
    )


def _macs_per_lane(isa: IsaRow, weights: WeightFormat) -> int:
    """Multiply-adds of a vector unit for one of fp32: dot products of two or four, or tiles, which
    do eight times as many (Intel's optimization manual, chapter on AMX).
    """
    tiles = 8 if isa.has_amx else 1
    if weights.has_int8_activations:
        if isa.has_u8_dot:
            return 4 * tiles
        return 2 if isa.has_short_sums else 1  # pairs of 16 bits, or nibbles in short sums
    return 2 * tiles if isa.has_bf16_dot and weights.dtype != "float32" else 1
