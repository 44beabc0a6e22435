"""The analytic cost model: how long a step takes on a set of cores, before it is measured there.

A step is a row of operators with a barrier behind each. An operator's units (panels of a GEMM, KV
heads and query tiles of attention, tokens of a norm) are split among the cores in equal contiguous
ranges, as the programs do it; it lasts about as long as its slowest core computes or its slowest
memory path delivers, whichever is longer. Assumed: weights and KV cache come from memory in every
step, read once, unless all of them fit in the last level caches of the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise

from codegen.layout.kv_format import KvFormat
from codegen.layout.model import ModelLayout
from codegen.spec import Phase
from codegen.step import operators as text
from platforms.machine import Machine
from schedules.rates import KernelRates, MachineRates

# A GEMM computes while its next weights come, and neither for nothing: of t1 and t2 the longer one
# decides, and where they are equal they take a quarter longer, as `sandwich bench plans` showed on
# Zen 4. Attention waits for keys and values that lie in blocks here and there: it takes the sum.
OVERLAP = 3.0
# Of the last level cache that weights and KV cache may fill to stay there. A model that fills 55 %
# of a Zen 4's is decoded from it: `sandwich plan --measure`.
CACHE_FRACTION = 0.75


@dataclass(frozen=True)
class StepSize:
    """The tokens of a step.

    num_tiles: units of attention per KV head. num_keys: keys that all tokens attend to, summed.
    num_cached: tokens whose keys and values are read. phase: whose program runs it.
    """

    num_tokens: int
    num_logits: int
    num_tiles: int
    num_keys: int
    num_cached: int
    phase: Phase = Phase.PREFILL

    @staticmethod
    def prefill(num_tokens: int, query_tile: int) -> StepSize:
        """A whole prompt, whose last token alone wants logits."""
        num_keys = num_tokens * (num_tokens + 1) // 2
        return StepSize(num_tokens, 1, -(-num_tokens // query_tile), num_keys, num_tokens)

    @staticmethod
    def decode(contexts: Sequence[int]) -> StepSize:
        """One token of each sequence; `contexts` counts its keys, the new one included."""
        num_seqs, num_keys = len(contexts), sum(contexts)
        return StepSize(num_seqs, num_seqs, num_seqs, num_keys, num_keys, Phase.DECODE)


@dataclass(frozen=True)
class StepCase:
    """A step to rate or to time: a whole prompt of `num_tokens`, or one token each of `num_tokens`
    sequences that have `context` keys, the new one included.
    """

    phase: Phase
    num_tokens: int
    context: int = 0

    @property
    def name(self) -> str:
        """For people: "prefill of 512 tokens", "decode of 8 sequences of 1024 tokens"."""
        if self.phase is Phase.PREFILL:
            return f"prefill of {self.num_tokens} tokens"
        what = "one sequence" if self.num_tokens == 1 else f"{self.num_tokens} sequences"
        return f"decode of {what} of {self.context} tokens"

    @property
    def num_cached(self) -> int:
        """Tokens in the cache after the step."""
        return self.num_tokens * (self.context or 1)

    def step(self, query_tile: int) -> StepSize:
        """What the cost model needs to know; query_tile is prefill's."""
        if self.phase is Phase.PREFILL:
            return StepSize.prefill(self.num_tokens, query_tile)
        return StepSize.decode([self.context] * self.num_tokens)


class Kind(Enum):
    """What an operator does, which decides what its units take."""

    EMBED = "embed"
    NORM = "norm"  # or rounding to int8, which like a norm is two passes over a row
    LINEAR = "linear"
    ROPE = "rope"
    ATTENTION = "attention"
    ARGMAX = "argmax"


@dataclass(frozen=True)
class Operator:
    """What is split: `num_units` alike, `repeats` times in a step."""

    name: str  # as the text of the model calls it
    kind: Kind
    repeats: int
    num_units: int
    flops: float = 0.0  # of one unit of a GEMM or of attention
    nbytes: float = 0.0  # of memory that one unit reads
    values: float = 0.0  # of one unit of the other operators
    rows: float = 0  # of activations that meet a matrix

    def unit_us(self, rates: KernelRates) -> float:
        """Microseconds of one unit on one core that has its data."""
        match self.kind:
            case Kind.ATTENTION:
                return rates.attention_unit_us + self.flops / rates.attention_gflops * 1e-3
            case Kind.EMBED:
                return self.values * rates.embed_ns * 1e-3
            case Kind.ROPE:
                return self.values * rates.rope_ns * 1e-3
            case Kind.ARGMAX:
                return self.values * rates.argmax_ns * 1e-3
            case Kind.NORM:
                return self.values * rates.norm_ns * 1e-3
            case Kind.LINEAR:
                return self.flops / rates.gemm_gflops.at(self.rows) * 1e-3


@dataclass(frozen=True)
class StepOperators:
    """The operators of a step, and the program that they belong to."""

    phase: Phase
    num_barriers: int
    operators: tuple[Operator, ...]

    @property
    def nbytes(self) -> float:
        """Bytes of weights and KV cache that the step reads."""
        return sum(op.repeats * op.num_units * op.nbytes for op in self.operators)

    @property
    def flops(self) -> float:
        """Operations of the step's matrix products."""
        return sum(op.repeats * op.num_units * op.flops for op in self.operators)


def operators(layout: ModelLayout, kv_dtype: str, step: StepSize) -> StepOperators:
    """The operators of a step of a model, as its text has them."""
    record = text.step_operators(layout)
    counted = tuple(
        _counted(op, repeats, layout, kv_dtype, step)
        for op, repeats in record
        if not op.is_optional
    )
    return StepOperators(step.phase, record.num_barriers, counted)


def _counted(
    op: text.Operator, repeats: int, layout: ModelLayout, kv_dtype: str, step: StepSize
) -> Operator:
    """The units of an operator, and what each of them computes and reads."""
    shape, tokens = layout.shape, step.num_tokens
    match op:
        case text.Embed():
            return Operator(op.name, Kind.EMBED, repeats, tokens, values=shape.hidden_size)
        case text.Linear():
            return _product(op.name, repeats, layout, step)
        case text.RotateAndCache():
            values = (shape.num_heads / shape.num_kv_heads + 2) * shape.head_dim
            num_units = tokens * shape.num_kv_heads
            return Operator(op.name, Kind.ROPE, repeats, num_units, values=values)
        case text.Attention(window=window):
            num_keys, num_cached = step.num_keys, step.num_cached
            if window:  # a prompt is read as a whole, by one token or another
                num_keys = min(num_keys, tokens * window)
                if step.phase is Phase.DECODE:
                    num_cached = min(num_cached, tokens * window)
            num_units = step.num_tiles * shape.num_kv_heads
            cached_bytes = 2 * shape.num_kv_heads * KvFormat(kv_dtype).nbytes(shape.head_dim)
            return Operator(
                op.name,
                Kind.ATTENTION,
                repeats,
                num_units,
                flops=4 * shape.num_heads * shape.head_dim * num_keys / num_units,
                nbytes=cached_bytes * num_cached / num_units,
            )
        case text.Argmax():
            num_units, values = shape.vocab_size // layout.lanes, step.num_logits * layout.lanes
            return Operator(op.name, Kind.ARGMAX, repeats, num_units, values=values)
    rows, values = _by_row(op, layout, step)
    return Operator(op.name, Kind.NORM, repeats, rows, values=values)


def _by_row(op: text.Operator, layout: ModelLayout, step: StepSize) -> tuple[int, int]:
    """The rows that an operator goes over as a norm does, and the values of each."""
    hidden, tokens = layout.shape.hidden_size, step.num_tokens
    match op:
        case text.Norm(is_wanted=is_wanted):
            return (step.num_logits if is_wanted else tokens), hidden
        case text.AddNormed() | text.Convert():
            return tokens, hidden
        case text.NormHeads(norms=norms):
            return tokens, sum(norm.count * norm.size for norm in norms)
        case text.Quantize(reader=role):
            matrix = layout.matrices[role]
            return tokens * matrix.matrix.per_token, matrix.panels.k
        case text.Route():
            return tokens, layout.panels("router").n
        case text.Gather():
            return tokens * layout.matrices["gate_up"].matrix.per_token, hidden
        case text.Collect():
            return tokens, layout.matrices["down"].matrix.per_token * hidden
    raise AssertionError(op)


def _product(role: str, repeats: int, layout: ModelLayout, step: StepSize) -> Operator:
    """Units are panels of all matrices that rows meet."""
    matrix, panels = layout.matrices[role].matrix, layout.panels(role)
    tokens = step.num_tokens if matrix.in_layers else step.num_logits
    num_read, rows = matrix.num_read(tokens), tokens * matrix.per_token
    num_units = max(1, round(num_read * panels.num_panels))
    return Operator(
        role,
        Kind.LINEAR,
        repeats,
        num_units,
        flops=2 * rows * panels.n_padded * panels.k / num_units,
        nbytes=num_read * panels.nbytes / num_units,
        rows=rows / num_read,
    )


@dataclass(frozen=True)
class Seats:
    """Where the cores of a plan sit: for each LLC group in the plan's order, how many and where."""

    sizes: tuple[int, ...]  # cores in each group
    nodes: tuple[int, ...]  # NUMA node of each group; groups of one node are neighbours
    cache_bytes: int = 0  # last level caches of these groups together; 0 if unknown

    @staticmethod
    def of(machine: Machine, groups: Sequence[Sequence[int]]) -> Seats:
        """The seats of CPUs that are listed by LLC group."""
        node_of = {cpu: node.node_id for node in machine.topology.nodes() for cpu in node.cpus}
        used = {cpu for cpus in groups for cpu in cpus}
        caches = [llc.cache_bytes or 0 for llc in machine.topology.groups() if used & set(llc.cpus)]
        nodes = tuple(node_of[cpus[0]] for cpus in groups)
        return Seats(tuple(map(len, groups)), nodes, sum(caches))

    @property
    def num_cores(self) -> int:
        return sum(self.sizes)

    def read_gbps(self, rates: MachineRates) -> float:
        """GB/s that all cores read together, each from its own node."""
        per_node: dict[int, float] = {}
        for node, size in zip(self.nodes, self.sizes, strict=True):
            per_node[node] = per_node.get(node, 0.0) + rates.group_gbps.at(size)
        return sum(min(gbps, rates.node_gbps) for gbps in per_node.values())

    def barrier_us(self, rates: MachineRates) -> float:
        """Microseconds of a barrier: cores meet in their group, groups in their node, nodes at one
        point (codegen/cores/barrier.py), and the release comes down the same way.
        """
        if self.num_cores == 1:
            return 0.0
        groups_of = [self.nodes.count(node) for node in dict.fromkeys(self.nodes)]
        arrivals = (max(self.sizes), max(groups_of), len(groups_of))
        lines_ns = (rates.group_line_ns, rates.node_line_ns, rates.far_line_ns)
        return rates.barrier_base_us + 1e-3 * rates.barrier_lines * sum(
            count * line_ns for count, line_ns in zip(arrivals, lines_ns, strict=True) if count > 1
        )


@dataclass(frozen=True)
class StepCost:
    """Microseconds of a step, and which part of them arithmetic, memory and barriers decide."""

    compute_us: float  # operators whose arithmetic takes longer than their reading, and attention's
    memory_us: float  # the others, and attention's reading
    barrier_us: float
    launch_us: float = 0.0

    @property
    def total_us(self) -> float:
        return self.compute_us + self.memory_us + self.barrier_us + self.launch_us


def step_cost(
    step: StepOperators, seats: Seats, rates: MachineRates, memory_nodes: frozenset[int]
) -> StepCost:
    """The time of a step on these seats with weights and KV cache spread over `memory_nodes`.

    If those are the seats' own nodes, every core finds its share on its own node.
    """
    compute_us = memory_us = 0.0
    kernels, speed = rates.kernels(step.phase), rates.busy_speed.at(seats.num_cores)
    is_cached = step.nbytes <= CACHE_FRACTION * seats.cache_bytes
    for op in step.operators:
        most = -(-op.num_units // seats.num_cores)  # units of the busiest core
        arithmetic = most * op.unit_us(kernels) / speed
        reading = 0.0 if is_cached else _read_us(op, most, seats, rates, memory_nodes)
        if op.kind is Kind.ATTENTION:
            compute_us += op.repeats * arithmetic
            memory_us += op.repeats * reading
            continue
        both = (arithmetic**OVERLAP + reading**OVERLAP) ** (1 / OVERLAP)
        if arithmetic >= reading:
            compute_us += op.repeats * both
        else:
            memory_us += op.repeats * both
    barrier_us = step.num_barriers * seats.barrier_us(rates)
    return StepCost(compute_us, memory_us, barrier_us, rates.launch_us)


def _read_us(
    op: Operator, most: int, seats: Seats, rates: MachineRates, memory_nodes: frozenset[int]
) -> float:
    """Microseconds in which every core has read its share: the slowest of all paths decides."""
    if op.nbytes == 0:
        return 0.0
    by_group = _shares(op.num_units, seats.sizes)
    by_node: dict[int, int] = {}
    for node, units in zip(seats.nodes, by_group, strict=True):
        by_node[node] = by_node.get(node, 0) + units
    times = [most / rates.core_gbps]
    times += [
        units / rates.group_gbps.at(size) for units, size in zip(by_group, seats.sizes, strict=True)
    ]
    if by_node.keys() == memory_nodes:
        times.append(max(by_node.values()) / rates.node_gbps)
    else:
        # The shares do not lie where their readers are: every read goes evenly to all of memory.
        local = 1 / len(memory_nodes) if by_node.keys() <= memory_nodes else 0.0
        times.append(op.num_units / len(memory_nodes) / rates.node_gbps)
        times.append(max(by_node.values()) * (1 - local) / rates.link_gbps)
    return max(times) * op.nbytes * 1e-3


def _shares(num_units: int, sizes: Sequence[int]) -> list[int]:
    """Units of each group of neighbouring cores, as codegen.cores.parallel.split deals them."""
    num_cores = sum(sizes)
    ends = [end * num_units // num_cores for end in accumulate(sizes)]
    return [end - begin for begin, end in pairwise([0, *ends])]
