"""The planner: from a machine, a model's layout and the user's wishes to the plans of both phases.

Cores are chosen by the plan search, tiles by tuned records, and what happens while there is work of
both phases by the cost model; with real step times, the best few of each are decided by those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Protocol

from codegen.layout.model import ModelLayout
from platforms.machine import Machine
from schedules.calibration import Calibration
from schedules.cost import StepCase
from schedules.mixed.choice import MixedChoice, choose_mixed
from schedules.mixed.cost import MixedLoad, MixedSpace
from schedules.mixed.plan import MixedMode
from schedules.plan import PlanPair
from schedules.rates import MachineRates, estimated_rates
from schedules.records import RecordBook
from schedules.search import (
    DECODE_CONTEXT,
    PREFILL_TOKENS,
    PlanSearch,
    SearchResult,
    on_candidate,
)
from schedules.tiles.default_plans import default_plans
from schedules.tiles.tuned_plans import Origins, tuned_plans
from schedules.topotree import Candidate, TopoTree, candidates, named_candidate, refined

MIXED_BATCH: Final = 4  # sequences that decode in the load that mixed plans are rated with


@dataclass(frozen=True)
class PlanWishes:
    """What the user decides about plans.

    max_chunk_tokens: of a prompt in one step; max_step_tokens: rows of a step of any kind.
    cpus: the CPUs to run on, instead of a choice; name: who named them. mixed_mode: None to choose.
    tpot_target: milliseconds from token to token while a prompt is prefilled, None for no target.
    """

    max_num_seqs: int
    max_chunk_tokens: int
    max_step_tokens: int
    cpus: tuple[int, ...] | None = None
    name: str = ""
    mixed_mode: MixedMode | None = None
    tpot_target: float | None = None
    rates_replicas: bool = True


class StepTimes(Protocol):
    """Microseconds of real steps: of a case on a candidate with the memory on the nodes of another,
    and from token to token while a prompt is prefilled under a mixed plan.
    """

    def __call__(self, case: StepCase, candidate: Candidate, home: Candidate) -> float: ...

    def mixed_us(self, plans: PlanPair, load: MixedLoad) -> float: ...


@dataclass(frozen=True)
class Planned:
    """Plans, where the tiles of each come from, and the search that chose the cores."""

    plans: PlanPair
    origins: Origins
    result: SearchResult


class Planner:
    """Makes the plans of one model on one machine; `plan` takes milliseconds unless it measures."""

    def __init__(
        self,
        machine: Machine,
        layout: ModelLayout,
        kv_dtype: str,
        wishes: PlanWishes,
        calibration: Calibration | None,
        records: RecordBook,
    ) -> None:
        self._machine, self._layout, self._kv_dtype = machine, layout, kv_dtype
        self._wishes, self._records = wishes, records
        self._hidden_groups = calibration.groups_of(machine) if calibration else ()
        self._tree = TopoTree.of(machine, groups=self._hidden_groups)
        found = self._core_sets()
        formats = layout.weights, layout.head
        self._defaults = default_plans(machine.isa_row, found[0].cpus, layout.shape, *formats)
        self._search = PlanSearch(
            machine, found, layout, kv_dtype, self._query_tile, self._rates(calibration)
        )

    def on(self, candidate: Candidate) -> PlanPair:
        """Both phases on the cores of `candidate`, with their tuned tiles."""
        return self._tuned(on_candidate(self._defaults, self._machine, candidate))[0]

    def plan(self, measure: StepTimes | None = None) -> Planned:
        """The plans; with `measure`, real steps decide between the best few of the cost model.

        Raises MixedPlanError if the wished mixed mode cannot be.
        """
        result = self._search.run(measure)
        mixed = self._mixed(result)
        if measure is not None:
            tuned, _ = self._tuned(self._applied(replace(result, mixed=mixed)))
            mixed = mixed.measured(measure.mixed_us(tuned, mixed.space.load))
        rates_replicas = self._wishes.rates_replicas
        result = replace(
            result,
            mixed=mixed,
            hidden_groups=self._hidden_groups,
            replicas=self._search.replicas(self._tree, result) if rates_replicas else None,
        )
        return Planned(*self._tuned(self._applied(result)), result)

    @property
    def _query_tile(self) -> int:
        return self._defaults.prefill.query_tile

    def _applied(self, result: SearchResult) -> PlanPair:
        return result.applied_to(self._defaults, self._machine)

    def _tuned(self, plans: PlanPair) -> tuple[PlanPair, Origins]:
        return tuned_plans(plans, self._layout, self._records)

    def _core_sets(self) -> tuple[Candidate, ...]:
        """The sets of CPUs to choose from, all first; only one if the user names the CPUs."""
        wishes = self._wishes
        if wishes.cpus is None:
            return candidates(self._tree)
        topology = refined(self._machine.topology, self._hidden_groups)
        return (named_candidate(wishes.name, topology, wishes.cpus),)

    def _rates(self, calibration: Calibration | None) -> MachineRates:
        """Measured, or else estimated."""
        if calibration is None:
            return estimated_rates(self._machine, self._layout.weights)
        return calibration.rates(self._machine, self._layout.weights)

    def _mixed(self, result: SearchResult) -> MixedChoice:
        """What happens while there is work of both phases."""
        wishes, longest = self._wishes, self._layout.shape.max_model_len
        space = MixedSpace(
            machine=self._machine,
            prefill=result.prefill.chosen.candidate,
            decode=result.decode.chosen.candidate,
            layout=self._layout,
            kv_dtype=self._kv_dtype,
            query_tile=self._query_tile,
            rates=result.rates,
            max_chunk_tokens=wishes.max_chunk_tokens,
            max_step_tokens=wishes.max_step_tokens,
            load=MixedLoad(
                batch=max(1, min(MIXED_BATCH, wishes.max_num_seqs - 1)),
                context=min(DECODE_CONTEXT, longest),
                prompt=min(PREFILL_TOKENS, longest),
            ),
        )
        return choose_mixed(space, wishes.tpot_target, wishes.mixed_mode)
