"""Plan search: the cores of each phase, chosen among the TopoTree's candidates.

The cost model ranks; where real steps can be timed, they decide between the best few. Decode
chooses first, and weights and KV cache lie on the nodes of its cores; prefill chooses with the
memory where it is, because both phases share one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from codegen.layout.model import ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from platforms.topology import Topology
from schedules.choice import MeasureStep, OtherCase, PhaseChoice, Prediction
from schedules.cost import Seats, StepCase, operators, step_cost
from schedules.mixed.choice import MixedChoice
from schedules.plan import PlanPair
from schedules.rates import MachineRates
from schedules.replicas import ReplicaRating, Replicas
from schedules.topotree import Candidate, TopoTree, core_groups, counted

PREFILL_TOKENS: Final = 512  # of the prompt that prefill is rated with
DECODE_CONTEXT: Final = 1024  # keys of the one sequence that decode is rated with
OTHER_PROMPTS: Final = (32, 128)  # tokens of shorter steps, which are rated beside it
OTHER_BATCHES: Final = (8, 32)  # sequences of larger ones


def on_candidate(plans: PlanPair, machine: Machine, candidate: Candidate) -> PlanPair:
    """Both plans on the cores of a candidate."""
    groups = core_groups(machine, candidate.groups)
    return replace(
        plans,
        prefill=plans.prefill.on(candidate.cpus, groups),
        decode=plans.decode.on(candidate.cpus, groups),
    )


@dataclass(frozen=True)
class SearchResult:
    """The choices of both phases, and what else was rated."""

    prefill: PhaseChoice
    decode: PhaseChoice
    rates: MachineRates
    mixed: MixedChoice | None = None  # None: nobody has chosen yet
    replicas: Replicas | None = None  # None: the machine has one NUMA node
    hidden_groups: tuple[tuple[int, ...], ...] = ()  # CPUs by LLC group, if sysfs hides those

    def applied_to(self, plans: PlanPair, machine: Machine) -> PlanPair:
        """The plans on the cores of `machine` that were chosen."""
        return replace(
            plans,
            prefill=on_candidate(plans, machine, self.prefill.chosen.candidate).prefill,
            decode=on_candidate(plans, machine, self.decode.chosen.candidate).decode,
            mixed=self.mixed.plan if self.mixed else plans.mixed,
        )

    def candidates_json(self) -> list[dict[str, Any]]:
        """Every candidate with its times in each phase, in the order of decode."""
        prefill = {p.candidate.cpus: p for p in self.prefill.ranked}
        return [
            {
                "name": p.candidate.name,
                "num_cores": len(p.candidate.cpus),
                "predicted_us": {
                    "prefill": round(prefill[p.candidate.cpus].predicted_us, 1),
                    "decode": round(p.predicted_us, 1),
                },
                "measured_us": {
                    "prefill": prefill[p.candidate.cpus].measured_us,
                    "decode": p.measured_us,
                },
            }
            for p in self.decode.ranked
        ]

    def render(self, topology: Topology) -> list[str]:
        """Lines for people. topology: of the machine that was searched."""
        rated = f"{self.prefill.case.name}, {self.decode.case.name}"
        source = "measured" if self.rates.is_measured else "assumed "
        return [
            f"rated    {rated}, {counted(len(self.decode.ranked), 'set')} of cores",
            f"{source} {self.rates.render(topology)}",
            *self.prefill.render(),
            *self.decode.render(),
            *(self.mixed.render() if self.mixed else ()),
            *(self.replicas.render() if self.replicas else ()),
        ]


@dataclass(frozen=True)
class PlanSearch:
    """What there is to choose from, the first candidate being the default, and the model.

    query_tile: tokens of a sequence that share a pass over its keys in prefill.
    """

    machine: Machine
    found: tuple[Candidate, ...]
    layout: ModelLayout
    kv_dtype: str
    query_tile: int
    rates: MachineRates

    def run(self, measure: MeasureStep | None = None) -> SearchResult:
        """Choose for both phases; with `measure`, by real steps of the best few candidates."""
        longest = self.layout.shape.max_model_len
        prompt, context = min(PREFILL_TOKENS, longest), min(DECODE_CONTEXT, longest)
        seats = [Seats.of(self.machine, candidate.groups) for candidate in self.found]
        own = [frozenset(seat.nodes) for seat in seats]
        batches = [StepCase(Phase.DECODE, batch, context) for batch in (1, *OTHER_BATCHES)]
        decode = self._choose(batches, seats, own, measure)
        decoding = decode.chosen.candidate
        home = own[self.found.index(decoding)]
        prompts = [StepCase(Phase.PREFILL, n) for n in (prompt, *OTHER_PROMPTS) if n <= prompt]
        prefill = self._choose(prompts, seats, [home] * len(seats), measure, decoding)
        return SearchResult(prefill, decode, self.rates)

    def replicas(self, tree: TopoTree, result: SearchResult) -> Replicas | None:
        """An engine per node, against the wide one of `result`; None where there is one node."""
        wide = {choice.phase: choice.chosen.candidate for choice in (result.prefill, result.decode)}
        rating = ReplicaRating(
            self.machine, self.layout, self.kv_dtype, self.query_tile, self.rates, wide
        )
        return rating.rate(tree, result.prefill.case.num_tokens, result.decode.case.context)

    def _choose(
        self,
        cases: Sequence[StepCase],
        seats: Sequence[Seats],
        memory: Sequence[frozenset[int]],
        measure: MeasureStep | None,
        home: Candidate | None = None,
    ) -> PhaseChoice:
        """The first case decides; the others are rated on what was chosen."""
        choice = PhaseChoice.of(cases[0], self._predict(cases[0], seats, memory))
        if measure is not None:
            choice = choice.measured(self.found[0], measure, home)
        at = self.found.index(choice.chosen.candidate)
        others = []
        for case in cases[1:]:
            predictions = self._predict(case, seats, memory)
            best = min(predictions, key=lambda p: p.predicted_us)
            others.append(OtherCase(case, predictions[at].predicted_us, best))
        return replace(choice, others=tuple(others))

    def _predict(
        self, case: StepCase, seats: Sequence[Seats], memory: Sequence[frozenset[int]]
    ) -> list[Prediction]:
        step = operators(self.layout, self.kv_dtype, case.step(self.query_tile))
        return [
            Prediction(candidate, step_cost(step, seat, self.rates, where))
            for candidate, seat, where in zip(self.found, seats, memory, strict=True)
        ]
