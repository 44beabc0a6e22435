"""A look inside a step: one line per operator with its time, its share and its rates.

Reads the timers of a program that has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt

from codegen.spec import GEMM_ROLES, OPERATORS, ProgramSpec
from codegen.step.arguments import Layouts


def step_report(
    spec: ProgramSpec, ticks: npt.NDArray[Any], num_tokens: int, num_logits: int
) -> Iterator[str]:
    """Lines for the operators of a step just run, GEMMs with GFLOP/s and GB/s of weights.

    Operators that the program does not have took no time and have no line.
    """
    model = Layouts.of(spec).model
    total = max(1, int(ticks[: len(OPERATORS)].sum()))
    for operator, nanoseconds in zip(OPERATORS, ticks.tolist(), strict=False):
        if not nanoseconds:
            continue
        line = f"{spec.phase.value} {operator:<20}{nanoseconds / 1e3:>10.0f} us"
        line += f"{nanoseconds / total:>7.1%}"
        if operator in GEMM_ROLES:
            layout = getattr(model, operator)
            is_head = operator == "lm_head"
            layers = 1 if is_head else spec.shape.num_layers
            flops = 2 * layout.n * layout.k * layers * (num_logits if is_head else num_tokens)
            nbytes = layout.nbytes * layers
            line += f"{flops / nanoseconds:>8.0f} GFLOP/s{nbytes / nanoseconds:>8.1f} GB/s"
        yield line
