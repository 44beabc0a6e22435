"""The order of the kinds of layers: runs of layers alike, and periods of runs that repeat.

A loop is emitted for each, so that what there is to compile does not grow with the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from codegen.spec import LayerKind


@dataclass(frozen=True)
class Run:
    """So many layers of one kind."""

    kind: LayerKind
    count: int


@dataclass(frozen=True)
class Period:
    """Runs that follow each other, `repeats` times."""

    runs: tuple[Run, ...]
    repeats: int

    @property
    def length(self) -> int:
        """Layers of the runs once."""
        return sum(run.count for run in self.runs)


def pattern_of(kinds: Sequence[LayerKind]) -> tuple[Period, ...]:
    """The layers' kinds in order as periods, each as long in layers as can be."""
    runs = [Run(kind, len(list(layers))) for kind, layers in groupby(kinds)]
    periods: list[Period] = []
    at = 0
    while at < len(runs):
        best = Period((runs[at],), 1)
        for size in range(1, (len(runs) - at) // 2 + 1):
            part = runs[at : at + size]
            repeats = 1
            while runs[at + repeats * size : at + (repeats + 1) * size] == part:
                repeats += 1
            found = Period(tuple(part), repeats)
            if repeats > 1 and found.length * repeats > best.length * best.repeats:
                best = found
        periods.append(best)
        at += len(best.runs) * best.repeats
    return tuple(periods)
