"""The analytic cost model: how long a step takes on a set of cores, before anything is measured.

A step is a row of operators with a barrier behind each. An operator's units (panels of a GEMM,
KV heads of attention) are split among the cores in equal contiguous ranges, as the programs do it;
it lasts as long as its slowest core computes or its slowest memory path delivers, whichever is
longer. Assumed: weights and KV cache come from memory in every step, read once; the operators
without weights cost their barrier alone. Knows nothing of how candidates are found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from codegen.layout import ModelLayout
from codegen.spec import GEMM_ROLES
from platforms.machine import Machine
from schedules.rates import MachineRates

LAYER_BARRIERS = 8  # operators of a layer, see codegen/program.py
STEP_BARRIERS = 5  # embed, norm, lm_head and the two halves of argmax
_VALUE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Step:
    """The tokens of a step.

    num_tiles: units of attention per KV head. num_keys: keys that all tokens attend to, summed.
    num_cached: tokens whose keys and values are read.
    """

    num_tokens: int
    num_logits: int
    num_tiles: int
    num_keys: int
    num_cached: int

    @staticmethod
    def prefill(num_tokens: int, query_tile: int) -> Step:
        """A whole prompt, whose last token alone wants logits."""
        num_keys = num_tokens * (num_tokens + 1) // 2
        return Step(num_tokens, 1, -(-num_tokens // query_tile), num_keys, num_tokens)

    @staticmethod
    def decode(contexts: Sequence[int]) -> Step:
        """One token of each sequence; `contexts` counts its keys, the new one included."""
        return Step(len(contexts), len(contexts), len(contexts), sum(contexts), sum(contexts))


@dataclass(frozen=True)
class Operator:
    """What is split: `num_units` alike, `repeats` times in a step."""

    repeats: int
    num_units: int
    flops: float  # of one unit
    nbytes: float  # of memory that one unit reads


def operators(layout: ModelLayout, kv_dtype: str, step: Step) -> tuple[Operator, ...]:
    """The operators of a step that do arithmetic or read weights or the KV cache."""
    shape = layout.shape
    found = []
    for role in GEMM_ROLES:
        panels = getattr(layout, role)
        repeats, rows = (
            (1, step.num_logits) if role == "lm_head" else (shape.num_layers, step.num_tokens)
        )
        values = panels.n_padded * panels.k / panels.num_panels
        nbytes = values * _VALUE_BYTES[layout.dtype]
        found.append(Operator(repeats, panels.num_panels, 2 * rows * values, nbytes))
    num_units = step.num_tiles * shape.num_kv_heads
    flops = 4 * shape.num_heads * shape.head_dim * step.num_keys / num_units
    cached = 2 * shape.head_dim * _VALUE_BYTES[kv_dtype] * step.num_cached
    nbytes = shape.num_kv_heads * cached / num_units
    found.append(Operator(shape.num_layers, num_units, flops, nbytes))
    return tuple(found)


@dataclass(frozen=True)
class Seats:
    """Where the cores of a plan sit: for each LLC group in the plan's order, how many and where."""

    sizes: tuple[int, ...]  # cores in each group
    nodes: tuple[int, ...]  # NUMA node of each group; groups of one node are neighbours

    @staticmethod
    def of(machine: Machine, groups: Sequence[Sequence[int]]) -> Seats:
        """The seats of CPUs that are listed by LLC group."""
        node_of = {cpu: node.node_id for node in machine.topology.nodes() for cpu in node.cpus}
        return Seats(tuple(map(len, groups)), tuple(node_of[cpus[0]] for cpus in groups))

    @property
    def num_cores(self) -> int:
        return sum(self.sizes)

    def barrier_us(self, rates: MachineRates) -> float:
        """Microseconds until the core that is farthest from the others has seen all of them."""
        if self.num_cores == 1:
            return 0.0
        of_node = {
            node: sum(size for size, n in zip(self.sizes, self.nodes, strict=True) if n == node)
            for node in self.nodes
        }
        slowest = max(
            (size - 1) * rates.group_line_ns
            + (of_node[node] - size) * rates.node_line_ns
            + (self.num_cores - of_node[node]) * rates.far_line_ns
            for size, node in zip(self.sizes, self.nodes, strict=True)
        )
        return rates.barrier_base_us + slowest / rates.lines_in_flight * 1e-3


@dataclass(frozen=True)
class StepCost:
    """Microseconds of a step, and which part of them arithmetic, memory and barriers decide."""

    compute_us: float  # operators whose arithmetic takes longer than their reading
    memory_us: float  # the others
    barrier_us: float

    @property
    def total_us(self) -> float:
        return self.compute_us + self.memory_us + self.barrier_us


def step_cost(
    ops: Sequence[Operator],
    num_layers: int,
    seats: Seats,
    rates: MachineRates,
    memory_nodes: frozenset[int],
) -> StepCost:
    """The time of a step on these seats with weights and KV cache spread over `memory_nodes`.

    If those are the seats' own nodes, every core finds its share on its own node.
    """
    compute_us = memory_us = 0.0
    for op in ops:
        most = -(-op.num_units // seats.num_cores)  # units of the busiest core
        arithmetic = most * op.flops / rates.core_gflops * 1e-3
        reading = _read_us(op, most, seats, rates, memory_nodes)
        if arithmetic >= reading:
            compute_us += op.repeats * arithmetic
        else:
            memory_us += op.repeats * reading
    num_barriers = LAYER_BARRIERS * num_layers + STEP_BARRIERS
    return StepCost(compute_us, memory_us, num_barriers * seats.barrier_us(rates))


def _read_us(
    op: Operator, most: int, seats: Seats, rates: MachineRates, memory_nodes: frozenset[int]
) -> float:
    """Microseconds in which every core has read its share: the slowest of all paths decides."""
    by_group = _shares(op.num_units, seats.sizes)
    by_node: dict[int, int] = {}
    for node, units in zip(seats.nodes, by_group, strict=True):
        by_node[node] = by_node.get(node, 0) + units
    times = [most / rates.core_gbps, max(by_group) / rates.group_gbps]
    if by_node.keys() == memory_nodes:
        times.append(max(by_node.values()) / rates.node_gbps)
    else:
        # The shares do not lie where their readers are: every read goes evenly to all of memory.
        local = 1 / len(memory_nodes) if by_node.keys() <= memory_nodes else 0.0
        times.append(op.num_units / len(memory_nodes) / rates.node_gbps)
        times.append(max(by_node.values()) * (1 - local) / rates.link_gbps)
    return max(times) * op.nbytes * 1e-3


def _shares(num_units: int, sizes: Sequence[int]) -> list[int]:
    """Units of each group of `sizes` neighbouring cores, as `codegen.parallel.split` deals them."""
    num_cores = sum(sizes)
    ends = [end * num_units // num_cores for end in accumulate(sizes)]
    return [end - begin for begin, end in pairwise([0, *ends])]
