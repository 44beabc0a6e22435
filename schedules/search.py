"""Plan search: the cores of each phase, chosen among the TopoTree's candidates by the cost model.

Prefill chooses first, and weights and KV cache lie on the nodes of its cores; decode chooses with
the memory where it is, because both phases share one copy. Knows nothing of tiles or programs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from codegen.layout import ModelLayout
from codegen.spec import Phase
from platforms.machine import Machine
from schedules.cost import Seats, Step, StepCost, operators, step_cost
from schedules.mixed_choice import MixedChoice
from schedules.plan import PlanPair
from schedules.rates import MachineRates
from schedules.topotree import Candidate, core_groups

PREFILL_TOKENS = 512  # of the prompt that prefill is rated with
DECODE_CONTEXT = 1024  # keys of the one sequence that decode is rated with
MIN_GAIN = 0.02  # of a step's time, below which fewer cores are not worth leaving the default
NUM_RUNNERS_UP = 3


@dataclass(frozen=True)
class Prediction:
    """A candidate and the time of a phase's step on it."""

    candidate: Candidate
    cost: StepCost

    @property
    def predicted_us(self) -> float:
        return self.cost.total_us


@dataclass(frozen=True)
class PhaseChoice:
    """What a phase runs on. ranked: all candidates, the fastest first."""

    phase: Phase
    chosen: Prediction
    ranked: tuple[Prediction, ...]
    reason: str  # one sentence, without the full stop

    @property
    def runners_up(self) -> tuple[Prediction, ...]:
        """The fastest of those that were not chosen."""
        others = [p for p in self.ranked if p is not self.chosen]
        return tuple(others[:NUM_RUNNERS_UP])

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON types; times are microseconds of one step."""
        candidate = self.chosen.candidate
        return {
            "name": candidate.name,
            "cores": list(candidate.cpus),
            "groups": [list(cpus) for cpus in candidate.groups],
            "predicted_us": round(self.chosen.predicted_us, 1),
            "reason": self.reason,
        }

    def render(self) -> list[str]:
        """Lines for people: the choice, the reason, the runners-up."""
        chosen = self.chosen
        return [
            f"{self.phase.value:<9}{chosen.candidate.name}: {_milliseconds(chosen)} predicted",
            f"{'':9}because {self.reason}",
            *(
                f"{'':9}then {p.candidate.name}, {len(p.candidate.cpus)} in all: {_milliseconds(p)}"
                for p in self.runners_up
            ),
        ]


@dataclass(frozen=True)
class SearchResult:
    """The choices of both phases for the steps that they were rated with."""

    prefill: PhaseChoice
    decode: PhaseChoice
    prefill_tokens: int
    decode_context: int
    rates: MachineRates
    mixed: MixedChoice | None = None  # None: nobody has chosen yet

    def applied_to(self, plans: PlanPair, machine: Machine) -> PlanPair:
        """The plans on the cores of `machine` that were chosen."""
        prefill, decode = self.prefill.chosen.candidate, self.decode.chosen.candidate
        return replace(
            plans,
            prefill=plans.prefill.on(prefill.cpus, core_groups(machine, prefill.groups)),
            decode=plans.decode.on(decode.cpus, core_groups(machine, decode.groups)),
            mixed=self.mixed.plan if self.mixed else plans.mixed,
        )

    def candidates_json(self) -> list[dict[str, Any]]:
        """Every candidate with its time in each phase, in the order of decode."""
        prefill_us = {p.candidate.cpus: p.predicted_us for p in self.prefill.ranked}
        return [
            {
                "name": p.candidate.name,
                "num_cores": len(p.candidate.cpus),
                "predicted_us": {
                    "prefill": round(prefill_us[p.candidate.cpus], 1),
                    "decode": round(p.predicted_us, 1),
                },
            }
            for p in self.decode.ranked
        ]

    def render(self) -> list[str]:
        """Lines for people."""
        return [
            f"rated    {self._rated()}, {len(self.decode.ranked)} sets of cores",
            f"assumed  {self.rates.render()}",
            *self.prefill.render(),
            *self.decode.render(),
            *(self.mixed.render() if self.mixed else ()),
        ]

    def _rated(self) -> str:
        prefill = f"prefill of {self.prefill_tokens} tokens"
        return f"{prefill}, decode of one sequence of {self.decode_context} tokens"


def search(
    machine: Machine,
    found: Sequence[Candidate],
    layout: ModelLayout,
    kv_dtype: str,
    query_tile: int,
    rates: MachineRates,
) -> SearchResult:
    """Rate the candidates, the first of which is the default, and choose one for each phase.

    query_tile: tokens of a sequence that share a pass over its keys in prefill.
    """
    longest = layout.shape.max_model_len
    prefill_tokens, decode_context = min(PREFILL_TOKENS, longest), min(DECODE_CONTEXT, longest)
    seats = [Seats.of(machine, candidate.groups) for candidate in found]
    nodes = [frozenset(seat.nodes) for seat in seats]

    def choose(phase: Phase, step: Step, memory: Sequence[frozenset[int]]) -> PhaseChoice:
        ops = operators(layout, kv_dtype, step)
        costs = [
            step_cost(ops, seat, rates, where)
            for seat, where in zip(seats, memory, strict=True)
        ]
        return _choice(phase, [Prediction(*pair) for pair in zip(found, costs, strict=True)])

    prefill = choose(Phase.PREFILL, Step.prefill(prefill_tokens, query_tile), nodes)
    home = nodes[list(found).index(prefill.chosen.candidate)]
    decode = choose(Phase.DECODE, Step.decode([decode_context]), [home] * len(nodes))
    return SearchResult(prefill, decode, prefill_tokens, decode_context, rates)


def _choice(phase: Phase, predictions: Sequence[Prediction]) -> PhaseChoice:
    default = predictions[0]
    ranked = tuple(sorted(predictions, key=lambda p: (p.predicted_us, len(p.candidate.cpus))))
    has_gain = ranked[0].predicted_us < (1 - MIN_GAIN) * default.predicted_us
    chosen = ranked[0] if has_gain else default
    reason = _gain(chosen, default) if has_gain else _no_gain(default, ranked)
    return PhaseChoice(phase, chosen, ranked, reason)


def _gain(chosen: Prediction, default: Prediction) -> str:
    parts = [
        f"{what} {after:.0f} us {_instead(before, after)}"
        for what, after, before in (
            ("arithmetic", chosen.cost.compute_us, default.cost.compute_us),
            ("memory", chosen.cost.memory_us, default.cost.memory_us),
            ("barriers", chosen.cost.barrier_us, default.cost.barrier_us),
        )
        if max(after, before) >= 0.5
    ]
    percent = 100 * (1 - chosen.predicted_us / default.predicted_us)
    counts = f"{len(chosen.candidate.cpus)} cores take {percent:.0f} % less time than"
    return f"{counts} {default.candidate.name}: {', '.join(parts)}"


def _instead(before: float, after: float) -> str:
    return f"instead of {before:.0f}" if round(before) != round(after) else "in both"


def _no_gain(default: Prediction, ranked: Sequence[Prediction]) -> str:
    cost = default.cost
    shares = {
        "arithmetic": cost.compute_us,
        "memory": cost.memory_us,
        "barriers": cost.barrier_us,
    }
    what = max(shares, key=lambda name: shares[name])
    share = f"{what} {'are' if what == 'barriers' else 'is'} "
    share += f"{100 * shares[what] / cost.total_us:.0f} % of the step"
    others = [p for p in ranked if p is not default]
    if not others:
        return f"{share}, and there is no other set of cores"
    change = others[0].predicted_us / cost.total_us - 1
    comparison = "longer" if change >= 0 else f"less, under the {100 * MIN_GAIN:.0f} % that count"
    return (
        f"{share}, and the best smaller set ({others[0].candidate.name}) takes "
        f"{100 * abs(change):.1f} % {comparison}"
    )


def _milliseconds(prediction: Prediction) -> str:
    value = prediction.predicted_us / 1000
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"
