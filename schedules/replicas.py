"""One engine per NUMA node against one wide engine: a plan for a server with many requests.

A replica reads its own copy of the weights from its own node and shares nothing, so that it never
waits for another; a single request is served by one node alone. Rated here; running replicas is a
matter of several servers, each with its own `--cpu-bind`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from codegen.layout.model import ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from platforms.sysfs import format_cpu_list
from schedules.choice import MIN_GAIN
from schedules.cost import Seats, StepCase, operators, step_cost
from schedules.rates import MachineRates
from schedules.topotree import Candidate, Level, TopoTree, candidates

SEQS_PER_REPLICA: Final = (1, 8, 32)


@dataclass(frozen=True)
class ReplicaStep:
    """A step of every replica beside one of the wide engine with as many tokens in all."""

    case: StepCase  # of one replica
    replica_us: float
    wide_us: float

    @property
    def gain(self) -> float:
        """How much more the replicas do in the same time; negative if they do less."""
        return self.wide_us / self.replica_us - 1

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "phase": self.case.phase.value,
            "num_tokens": self.case.num_tokens,
            "context": self.case.context,
            "replica_us": round(self.replica_us, 1),
            "wide_us": round(self.wide_us, 1),
        }


@dataclass(frozen=True)
class Replicas:
    """An engine per node. steps: as many sequences or prompts on each as the case says."""

    cpus: tuple[tuple[int, ...], ...]  # of each replica
    steps: tuple[ReplicaStep, ...]
    alone_gain: float  # of a single sequence that decodes: negative, as one node serves it

    @property
    def wins(self) -> tuple[ReplicaStep, ...]:
        """The steps in which replicas do more."""
        return tuple(step for step in self.steps if step.gain >= MIN_GAIN)

    @property
    def reason(self) -> str:
        """When replicas would win; one sentence, without the full stop."""
        if not self.wins:
            return "one wide engine does as much in every step that was rated"
        what = ", ".join(f"{100 * s.gain:.0f} % more in {s.case.name} each" for s in self.wins)
        return f"{what}, but a sequence alone decodes at {100 * (1 + self.alone_gain):.0f} % speed"

    def to_json(self) -> dict[str, Any]:
        """JSON types; times are microseconds."""
        return {
            "cores": [list(cpus) for cpus in self.cpus],
            "steps": [step.to_json() for step in self.steps],
            "alone_gain": round(self.alone_gain, 4),
            "reason": self.reason,
        }

    def render(self) -> list[str]:
        """Lines for people."""
        lines = [f"replicas {len(self.cpus)} engines, one per node: {self.reason}"]
        if self.wins:
            sets = ", ".join(f"--cpu-bind {format_cpu_list(cpus)}" for cpus in self.cpus)
            lines.append(f"{'':9}they would be servers of their own: {sets}")
        return lines


@dataclass(frozen=True)
class ReplicaRating:
    """What is rated, and with what: the wide engine's cores of each phase are known."""

    machine: Machine
    layout: ModelLayout
    kv_dtype: str
    query_tile: int
    rates: MachineRates
    wide: Mapping[Phase, Candidate]

    def rate(self, tree: TopoTree, prompt: int, context: int) -> Replicas | None:
        """Replicas of a tree of several nodes, the first of which stands for all; None if it has
        one, or if they differ by more than the core that is left for the server.
        """
        nodes = list(tree.at(Level.NODE))
        sizes = [len(node.cpus) for node in nodes]
        if len(nodes) < 2 or max(sizes) - min(sizes) > 1:
            return None
        cases = [StepCase(Phase.PREFILL, prompt)]
        cases += [StepCase(Phase.DECODE, batch, context) for batch in SEQS_PER_REPLICA]
        first = tree.children[0]
        own = candidates(replace(tree, children=(replace(first, children=first.children[:1]),)))
        steps = tuple(
            ReplicaStep(case, self._best_us(own, case), self._wide_us(case, len(nodes)))
            for case in cases
        )
        alone = self._us(self.wide[Phase.DECODE], cases[1]) / steps[1].replica_us - 1
        return Replicas(tuple(node.cpus for node in nodes), steps, alone)

    def _best_us(self, own: Sequence[Candidate], case: StepCase) -> float:
        return min(self._us(candidate, case) for candidate in own)

    def _wide_us(self, case: StepCase, num_replicas: int) -> float:
        """The same work on the wide engine: prompts one after the other, sequences in one step."""
        wide = self.wide[case.phase]
        if case.phase is Phase.PREFILL:
            return num_replicas * self._us(wide, case)
        return self._us(wide, replace(case, num_tokens=num_replicas * case.num_tokens))

    def _us(self, candidate: Candidate, case: StepCase) -> float:
        seats = Seats.of(self.machine, candidate.groups)
        step = operators(self.layout, self.kv_dtype, case.step(self.query_tile))
        return step_cost(step, seats, self.rates, frozenset(seats.nodes)).total_us
