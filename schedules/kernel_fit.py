"""From the times of operators in real steps to the rates of one core's kernels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codegen.layout.model import ModelLayout
from codegen.step.operators import step_operators
from schedules.calibration import ProgramRates, kernel_kind
from schedules.cost import Kind, Operator, StepCase, operators
from schedules.rates import Curve, KernelRates

Times = Sequence[tuple[Operator, float]]  # an operator, and its nanoseconds in a step


@dataclass(frozen=True)
class TimedStep:
    """A step on one core: nanoseconds by operator, and of the whole native call."""

    case: StepCase
    operator_ns: Mapping[str, float]
    native_ns: float


def program_rates(
    layout: ModelLayout, kv_dtype: str, query_tile: int, steps: Sequence[TimedStep]
) -> ProgramRates:
    """The rates of the program that ran `steps`, all of one phase, of one model on one core.

    The model's weights should fit in the caches; there should be steps of several numbers of rows
    and of several contexts.
    """
    (phase,) = {step.case.phase for step in steps}
    # products and norms of all rows, which are those in the layers
    chosen = step_operators(layout).in_layers
    found = [
        (
            step.case.num_tokens,
            [
                (op, step.operator_ns[op.name])
                for op in operators(layout, kv_dtype, step.case.step(query_tile)).operators
                if op.name in chosen or op.kind in (Kind.EMBED, Kind.ARGMAX)
            ],
        )
        for step in steps
    ]
    unit_us, gflops = _attention(
        [pair for _, times in found for pair in _of(Kind.ATTENTION, times)]
    )
    by_rows: dict[int, list[float]] = {}
    for num_tokens, times in found:
        products = _of(Kind.LINEAR, times)
        flops = sum(_total(op, op.flops) for op, _ in products)
        by_rows.setdefault(num_tokens, []).append(flops / max(sum(ns for _, ns in products), 1))

    def value_ns(kind: Kind) -> float:
        pairs = [pair for _, times in found for pair in _of(kind, times)]
        return sum(ns for _, ns in pairs) / sum(_total(op, op.values) for op, _ in pairs)

    kernels = KernelRates(
        gemm_gflops=Curve(
            tuple((float(rows), statistics.median(by_rows[rows])) for rows in sorted(by_rows))
        ),
        attention_gflops=gflops,
        attention_unit_us=unit_us,
        embed_ns=value_ns(Kind.EMBED),
        norm_ns=value_ns(Kind.NORM),
        rope_ns=value_ns(Kind.ROPE),
        argmax_ns=value_ns(Kind.ARGMAX),
    )
    launch = [step.native_ns - sum(step.operator_ns.values()) for step in steps]
    return ProgramRates(
        kernel_kind(layout.weights), phase, kernels, max(0.0, statistics.median(launch)) / 1e3
    )


def _of(kind: Kind, times: Times) -> Times:
    return [(op, ns) for op, ns in times if op.kind is kind]


def _total(op: Operator, of_unit: float) -> float:
    return op.repeats * op.num_units * of_unit


def _attention(pairs: Iterable[tuple[Operator, float]]) -> tuple[float, float]:
    """(microseconds a unit, GFLOP/s) that explain the times best, relative errors being equal."""
    rows = [
        (op.repeats * op.num_units / ns, _total(op, op.flops) / ns) for op, ns in pairs if ns > 0
    ]
    unit_ns, flop_ns = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)[0]
    if unit_ns < 0 or flop_ns <= 0:  # too noisy to tell the two apart: all of it is arithmetic
        unit_ns, flop_ns = 0.0, 1 / statistics.median(flops for _, flops in rows)
    return float(unit_ns) / 1e3, 1 / float(flop_ns)
