"""A probe of how far two cores are from each other: a cache line that they write by turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.compile import lower, tensor
from codegen.functions import ir_module
from codegen.kit import CACHE_LINE_BYTES, T
from platforms.isa import IsaRow

LINE_WORDS = CACHE_LINE_BYTES // 4

# A side that waits longer than this has lost its partner: seconds, where a line takes nanoseconds.
_MAX_POLLS = 1 << 30
# Side 0 turns an even count odd, side 1 an odd one even; returns the turns that were completed.
_PING_PONG = f"""
define i32 @sw_ping_pong(ptr %line, i32 %side, i32 %turns) noinline {{
begin:
  %start = load atomic i32, ptr %line acquire, align 4
  %any = icmp sgt i32 %turns, 0
  br i1 %any, label %turn, label %end
turn:
  %done = phi i32 [0, %begin], [%more, %answer]
  %twice = shl i32 %done, 1
  %expected = add i32 %twice, %side
  br label %wait
wait:
  %polls = phi i32 [0, %turn], [%again, %poll]
  %seen = load atomic i32, ptr %line acquire, align 4
  %is_ours = icmp eq i32 %seen, %expected
  br i1 %is_ours, label %answer, label %poll
poll:
  %again = add i32 %polls, 1
  %is_lost = icmp eq i32 %again, {_MAX_POLLS}
  br i1 %is_lost, label %end, label %wait
answer:
  %next = add i32 %seen, 1
  store atomic i32 %next, ptr %line release, align 4
  %more = add i32 %done, 1
  %is_last = icmp eq i32 %more, %turns
  br i1 %is_last, label %end, label %turn
end:
  %count = phi i32 [0, %begin], [%done, %poll], [%more, %answer]
  ret i32 %count
}}"""

Words = npt.NDArray[np.int32]


class PingPongProbe:
    """Two threads pass a cache line back and forth: each calls `play` with its side, 0 or 1."""

    def __init__(self, isa: IsaRow) -> None:
        self._function = lower(ir_module("probe_ping_pong", _ping_pong), isa)["probe_ping_pong"]

    def play(self, side: int, num_turns: int, line: Words, played: Words) -> None:
        """Answer the other side `num_turns` times. `line` (LINE_WORDS,) is shared and starts as
        zeros; played[0] receives the turns that were completed, fewer if the other side is lost.
        """
        self._function(side, num_turns, tensor(line), tensor(played))


def _ping_pong() -> None:
    side, num_turns = (T.arg(name, T.int32()) for name in ("side", "num_turns"))
    line = T.arg("line", T.buffer((LINE_WORDS,), "int32"))
    played = T.arg("played", T.buffer((LINE_WORDS,), "int32"))
    with T.attr(T.int32(0), "pragma_import_llvm", _PING_PONG):
        address: Any = T.address_of(line[0])
        turns = T.call_extern("int32", "sw_ping_pong", address, side, num_turns)
        T.buffer_store(played, turns, [0])
