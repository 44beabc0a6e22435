"""The choice of a mixed plan among all that there are.

What counts first is the time from token to token while a prompt is prefilled (TPOT), then how long
each request occupies the machine when one prompt follows the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from platforms.sysfs import format_cpu_list
from schedules.choice import milliseconds
from schedules.mixed.cost import MixedPrediction, MixedSpace
from schedules.mixed.plan import MixedMode, MixedPlan, MixedPlanError

DEFAULT_TPOT_MS: Final = 250.0  # without a target: four tokens a second, a fast reader's pace
MIN_GAIN: Final = 0.02  # of a request's time, below which the shorter TTFT decides


@dataclass(frozen=True)
class MixedChoice:
    """What was chosen, the best of each mode, the chosen one first, and what there was."""

    chosen: MixedPrediction
    best_of_modes: tuple[MixedPrediction, ...]
    space: MixedSpace

    @property
    def plan(self) -> MixedPlan:
        return self.chosen.plan

    def measured(self, tpot_us: float) -> MixedChoice:
        """The same with a TPOT of the chosen plan that was measured under the space's load."""
        chosen = replace(self.chosen, measured_us=tpot_us)
        return replace(self, chosen=chosen, best_of_modes=(chosen, *self.best_of_modes[1:]))

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON types, with the best of every mode as `candidates`."""
        return self.chosen.to_json() | {
            "cores": list(self.space.prefill.cpus),
            "groups": [list(cpus) for cpus in self.space.prefill.groups],
            "load": asdict(self.space.load),
            "candidates": [prediction.to_json() for prediction in self.best_of_modes],
        }

    def render(self) -> list[str]:
        """Lines for people: the choice, the reason, the other modes."""
        others = self.best_of_modes[1:]
        return [
            self.plan.render(),
            f"{'':9}{self.chosen.render()}",
            f"{'':9}because {self.plan.reason}",
            f"{'':9}if {self.space.load.render()}",
            *(
                f"{'':9}then {p.plan.mode}, chunks of {p.plan.chunk_tokens}: {p.render()}"
                for p in others
            ),
        ]


def choose_mixed(
    space: MixedSpace, tpot_target_ms: float | None = None, mode: MixedMode | None = None
) -> MixedChoice:
    """Of the plans that keep the TPOT target, the one with the least time per request and, among
    nearly equal ones, the shortest TTFT; if none does, the one with the shortest TPOT.

    mode: the one to use; None chooses. Raises MixedPlanError if CORUN is asked for where no LLC
    group has two cores.
    """
    limit_us = 1e3 * (DEFAULT_TPOT_MS if tpot_target_ms is None else tpot_target_ms)
    by_mode: dict[MixedMode, list[MixedPrediction]] = {}
    for prediction in space.predictions():
        by_mode.setdefault(prediction.plan.mode, []).append(prediction)
    if mode is not None and mode not in by_mode:
        raise MixedPlanError(
            f"{mode} needs an LLC group with two cores, but prefill has one in each, CPUs "
            f"{format_cpu_list(space.prefill.cpus)}; choose turns or ride"
        )
    bests = [_best(found, limit_us) for found in by_mode.values()]
    first = _best(bests if mode is None else [p for p in bests if p.plan.mode is mode], limit_us)
    others = [p for p in bests if p is not first]
    bound = f"the {'bound' if tpot_target_ms is None else 'target'} of {milliseconds(limit_us)}"
    if mode is None:
        reason = _reason(first, others, limit_us, bound)
    else:
        keeps = "keeps" if first.tpot_us <= limit_us else "exceeds"
        reason = f"it was asked for; its TPOT of {milliseconds(first.tpot_us)} {keeps} {bound}"
    chosen = replace(first, plan=replace(first.plan, reason=reason))
    return MixedChoice(chosen, (chosen, *others), space)


def _best(predictions: Sequence[MixedPrediction], limit_us: float) -> MixedPrediction:
    keeping = [p for p in predictions if p.tpot_us <= limit_us]
    if not keeping:
        return min(predictions, key=lambda p: (p.tpot_us, p.request_us))
    least_us = min(p.request_us for p in keeping)
    good = [p for p in keeping if p.request_us <= (1 + MIN_GAIN) * least_us]
    return min(good, key=lambda p: (p.ttft_us, p.request_us))


def _reason(
    chosen: MixedPrediction, others: Sequence[MixedPrediction], limit_us: float, bound: str
) -> str:
    tpot = f"its TPOT of {milliseconds(chosen.tpot_us)}"
    if chosen.tpot_us > limit_us:
        return f"no mode keeps {bound}, and {tpot} is the shortest"
    rivals = ", ".join(_rival(p, chosen, limit_us) for p in others)
    request = f"a request takes {milliseconds(chosen.request_us)}"
    return f"{tpot} keeps {bound} and {request} ({rivals})"


def _rival(other: MixedPrediction, chosen: MixedPrediction, limit_us: float) -> str:
    """What a request takes in another mode, and why that is not enough where it is less."""
    text = f"{other.plan.mode} {milliseconds(other.request_us)}"
    if other.tpot_us > limit_us:
        return f"{text} at a TPOT of {milliseconds(other.tpot_us)}"
    if other.request_us < chosen.request_us:
        first, own = milliseconds(other.ttft_us), milliseconds(chosen.ttft_us)
        return f"{text} with the first token after {first} instead of {own}"
    return text
