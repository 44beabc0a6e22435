"""Timers inside a step: nanoseconds from the first share of an operator to that of the next one.

A program with timers reads the clock at the start of every operator and adds the time since the
last reading to the operator that was running. The clock is libc's, so it works on every ISA.
"""

from __future__ import annotations

import numpy as np

from codegen.kit import Expr, T
from codegen.step.arguments import TIMER_WORDS

OUTSIDE = 0  # the slot for time before the first operator and after the last
_RUNNING = 1  # which slot the running operator has
_SINCE = 2  # when it began
assert TIMER_WORDS == _SINCE + 1  # the slots of the operators follow

_CLOCK = """
declare i32 @clock_gettime(i32, ptr)
define i64 @sw_now_ns() noinline {
  %time = alloca [2 x i64]
  %status = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %ns = load i64, ptr %rest
  %scaled = mul i64 %seconds, 1000000000
  %sum = add i64 %scaled, %ns
  ret i64 %sum
}"""


def clock_import() -> Expr:
    """The frame that brings the clock into the module."""
    return T.attr(T.int32(0), "pragma_import_llvm", _CLOCK)


def switch_to(ticks: Expr, slot: int) -> None:
    """End the running operator and begin that of `slot`; emitted for one core only."""
    now = T.bind(T.call_extern("int64", "sw_now_ns"))
    running = T.bind(ticks[_RUNNING])
    T.buffer_store(ticks, ticks[running] + now - ticks[_SINCE], [running])
    T.buffer_store(ticks, T.int64(slot), [_RUNNING])
    T.buffer_store(ticks, now, [_SINCE])


def reset(ticks: np.ndarray) -> None:
    """Make the buffer ready for a step."""
    ticks[:] = 0
    ticks[_RUNNING] = OUTSIDE
