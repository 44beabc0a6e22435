"""What a phase runs on and why: candidates with their predicted and measured times, as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from codegen.spec import Phase
from schedules.cost import StepCase, StepCost
from schedules.topotree import Candidate

MIN_GAIN: Final = 0.02  # of a step's time; for less than that the default is not left
NUM_RUNNERS_UP: Final = 3
NUM_MEASURED: Final = 4  # candidates of a phase, the default among them
MIN_SPREAD: Final = 1.25  # between the numbers of cores of candidates that are measured
WORTH_MEASURING: Final = 1.25  # times the shortest prediction; beyond the model is believed

# Runs a case on a candidate and returns the microseconds of one step. Weights and KV cache lie on
# the nodes of the second candidate, the one that decodes.
MeasureStep = Callable[[StepCase, Candidate, Candidate], float]


@dataclass(frozen=True)
class Prediction:
    """A candidate and the time of a phase's step on it."""

    candidate: Candidate
    cost: StepCost
    measured_us: float | None = None

    @property
    def predicted_us(self) -> float:
        return self.cost.total_us

    @property
    def shown(self) -> str:
        """For people: "5.1 ms predicted, 5.3 ms measured"."""
        text = f"{milliseconds(self.predicted_us)} predicted"
        if self.measured_us is None:
            return text
        return f"{text}, {milliseconds(self.measured_us)} measured"


@dataclass(frozen=True)
class OtherCase:
    """A step of another size on the chosen cores, and on those that would be the best for it."""

    case: StepCase
    chosen_us: float
    best: Prediction

    @property
    def gain(self) -> float:
        """Part of the chosen cores' time that the best ones save."""
        return 1 - self.best.predicted_us / self.chosen_us

    def to_json(self) -> dict[str, Any]:
        """JSON types; times are microseconds."""
        return {
            "num_tokens": self.case.num_tokens,
            "context": self.case.context,
            "predicted_us": round(self.chosen_us, 1),
            "best": self.best.candidate.name,
            "best_predicted_us": round(self.best.predicted_us, 1),
        }

    def render(self) -> str:
        """For people."""
        text = f"{self.case.name} takes {milliseconds(self.chosen_us)}"
        if self.gain < MIN_GAIN:
            return text
        return f"{text}; {self.best.candidate.name} would take {100 * self.gain:.0f} % less"


@dataclass(frozen=True)
class PhaseChoice:
    """What a phase runs on. ranked: all candidates, the shortest prediction first."""

    phase: Phase
    case: StepCase  # the step that decided
    chosen: Prediction
    ranked: tuple[Prediction, ...]
    reason: str  # one sentence, without the full stop
    others: tuple[OtherCase, ...] = ()  # steps of other sizes, rated after the choice

    @staticmethod
    def of(case: StepCase, predictions: Sequence[Prediction]) -> PhaseChoice:
        """The choice by prediction; the first is the default, kept unless another gains."""
        default = predictions[0]
        ranked = tuple(sorted(predictions, key=lambda p: (p.predicted_us, len(p.candidate.cpus))))
        has_gain = ranked[0].predicted_us < (1 - MIN_GAIN) * default.predicted_us
        chosen = ranked[0] if has_gain else default
        reason = _gain(chosen, default) if has_gain else _no_gain(default, ranked)
        return PhaseChoice(case.phase, case, chosen, ranked, reason)

    def measured(
        self, default: Candidate, measure: MeasureStep, home: Candidate | None = None
    ) -> PhaseChoice:
        """The choice among the best few and `default` by what a real step takes on them.

        home: the candidate that decodes; None where that is the one that is timed.
        """
        few = self._worth_measuring(default)
        times = {
            id(p): replace(p, measured_us=measure(self.case, p.candidate, home or p.candidate))
            for p in few
        }
        ranked = tuple(times.get(id(p), p) for p in self.ranked)
        by_time = sorted(times.values(), key=_measured_us)
        (kept,) = (p for p in by_time if p.candidate == default)
        has_gain = _measured_us(by_time[0]) < (1 - MIN_GAIN) * _measured_us(kept)
        chosen = by_time[0] if has_gain else kept
        others = [p for p in by_time if p is not chosen]
        return replace(self, chosen=chosen, ranked=ranked, reason=_measured(chosen, others))

    def _worth_measuring(self, default: Candidate) -> list[Prediction]:
        """The default and the best that differ enough from it and from each other."""
        few = [p for p in self.ranked if p.candidate == default]
        longest = WORTH_MEASURING * self.ranked[0].predicted_us
        for p in self.ranked:
            ratios = [len(p.candidate.cpus) / len(other.candidate.cpus) for other in few]
            is_new = all(max(ratio, 1 / ratio) >= MIN_SPREAD for ratio in ratios)
            if p.predicted_us <= longest and is_new and len(few) < NUM_MEASURED:
                few.append(p)
        return few

    @property
    def runners_up(self) -> tuple[Prediction, ...]:
        """The fastest of those that were not chosen, measured ones first."""
        others = [p for p in self.ranked if p.candidate != self.chosen.candidate]
        others.sort(key=lambda p: (p.measured_us is None, p.measured_us or p.predicted_us))
        return tuple(others[:NUM_RUNNERS_UP])

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON types; times are microseconds of one step."""
        candidate, measured_us = self.chosen.candidate, self.chosen.measured_us
        return {
            "name": candidate.name,
            "cores": list(candidate.cpus),
            "groups": [list(cpus) for cpus in candidate.groups],
            "predicted_us": round(self.chosen.predicted_us, 1),
            "measured_us": None if measured_us is None else round(measured_us, 1),
            "reason": self.reason,
            "steps": [other.to_json() for other in self.others],
        }

    def render(self) -> list[str]:
        """Lines for people: the choice, the reason, the runners-up, steps of other sizes."""
        return [
            f"{self.phase.value:<9}{self.chosen.candidate.name}: {self.chosen.shown}",
            f"{'':9}because {self.reason}",
            *(
                f"{'':9}then {p.candidate.name}, {len(p.candidate.cpus)} in all: {p.shown}"
                for p in self.runners_up
            ),
            *(f"{'':9}{other.render()}" for other in self.others),
        ]


def milliseconds(microseconds: float) -> str:
    """Three digits: "5.13 ms"."""
    value = microseconds / 1000
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"


def _measured_us(prediction: Prediction) -> float:
    assert prediction.measured_us is not None
    return prediction.measured_us


def _measured(chosen: Prediction, others: Sequence[Prediction]) -> str:
    text = f"a step was measured to take {milliseconds(_measured_us(chosen))}"
    if not others:
        return f"{text}, and no other set of cores came near in the prediction"
    change = 100 * (_measured_us(others[0]) / _measured_us(chosen) - 1)
    comparison = f"{change:.1f} % longer" if change >= 0 else f"{-change:.1f} % less, too little"
    return f"{text}, and {others[0].candidate.name} {comparison}"


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
    best = f"the best smaller set ({others[0].candidate.name})"
    if abs(change) < 0.0005:
        return f"{share}, and {best} takes as long"
    comparison = "longer" if change > 0 else f"less, under the {100 * MIN_GAIN:.0f} % that count"
    return f"{share}, and {best} takes {100 * abs(change):.1f} % {comparison}"
