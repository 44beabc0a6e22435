"""From the times of operators in real steps to the rates of one core's kernels."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codegen.layout.model import ModelLayout
from schedules.calibration import ProgramRates, kernel_kind
from schedules.cost import Operator, StepCase, operators
from schedules.rates import Curve, KernelRates

_LAYER_GEMMS = ("qkv", "o", "gate_up", "down")
_NORMS = ("input_norm", "post_attention_norm")


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
    found = [
        ({op.name: op for op in operators(layout, kv_dtype, s.case.step(query_tile)).operators}, s)
        for s in steps
    ]
    (phase,) = {step.case.phase for step in steps}
    unit_us, gflops = _attention(
        [(ops["attention"], s.operator_ns["attention"]) for ops, s in found]
    )
    by_rows: dict[int, list[float]] = {}
    for ops, step in found:
        flops = sum(_total(ops[name], ops[name].flops) for name in _LAYER_GEMMS)
        nanoseconds = sum(step.operator_ns[name] for name in _LAYER_GEMMS)
        by_rows.setdefault(step.case.num_tokens, []).append(flops / max(nanoseconds, 1))

    def value_ns(*names: str) -> float:
        pairs = [
            (_total(ops[n], ops[n].values), s.operator_ns[n]) for ops, s in found for n in names
        ]
        return sum(ns for _, ns in pairs) / sum(values for values, _ in pairs)

    kernels = KernelRates(
        gemm_gflops=Curve(
            tuple((float(rows), statistics.median(by_rows[rows])) for rows in sorted(by_rows))
        ),
        attention_gflops=gflops,
        attention_unit_us=unit_us,
        embed_ns=value_ns("embed"),
        norm_ns=value_ns(*_NORMS),
        rope_ns=value_ns("rope_and_cache"),
        argmax_ns=value_ns("argmax"),
    )
    launch = [step.native_ns - sum(step.operator_ns.values()) for step in steps]
    return ProgramRates(
        kernel_kind(layout.weights), phase, kernels, max(0.0, statistics.median(launch)) / 1e3
    )


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
