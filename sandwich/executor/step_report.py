"""A look inside a step: one line per operator with its time, its share and its rates.

Reads the timers of a program that has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from codegen.spec import ProgramSpec
from codegen.step.arguments import TIMER_WORDS, Layouts
from codegen.step.operators import step_operators


def operator_ns(spec: ProgramSpec, ticks: npt.NDArray[Any]) -> dict[str, int]:
    """Nanoseconds of each operator of a step just run, in their order."""
    names = step_operators(Layouts.of(spec).model).names
    return dict(zip(names, ticks[TIMER_WORDS:].tolist(), strict=True))


def step_report(
    spec: ProgramSpec, ticks: npt.NDArray[Any], num_tokens: int, num_logits: int
) -> Iterator[str]:
    """Lines for the operators of a step just run, GEMMs with GFLOP/s and GB/s of weights.

    Operators that took no time have no line.
    """
    model = Layouts.of(spec).model
    times = operator_ns(spec, ticks)
    total = max(1, sum(times.values()))
    for operator, nanoseconds in times.items():
        if not nanoseconds:
            continue
        line = f"{spec.phase.value} {operator:<20}{nanoseconds / 1e3:>10.0f} us"
        line += f"{nanoseconds / total:>7.1%}"
        if matrix := model.matrices.get(operator):
            layout, in_layers = matrix.panels, matrix.matrix.in_layers
            rows = num_tokens if in_layers else num_logits
            flops = 2 * layout.n * layout.k * model.num_products(operator) * rows
            layers = model.shape.num_layers if in_layers else 1
            nbytes = layout.nbytes * layers * matrix.matrix.num_read(rows)
            line += f"{flops / nanoseconds:>8.0f} GFLOP/s{nbytes / nanoseconds:>8.1f} GB/s"
        yield line
