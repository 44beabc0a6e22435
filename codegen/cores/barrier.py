"""The barrier of a parallel region: who meets whom, as values, and its code, as LLVM IR.

The cores of an LLC group count themselves on a line of their group; the last one goes on to the
line of its NUMA node, the last of those to the machine's. Release comes down the same way: a core
that waits polls a flag of its own group, which is written once for each barrier with the number of
that barrier. So a line crosses from socket to socket once for each node, not once for each core
(Yew, Tzeng and Lawrie, "Distributing Hot-Spot Addressing in Large-Scale Multiprocessors", IEEE TC
1987).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from string import Template

import numpy as np

from codegen.layout.arrays import TensorSpec
from codegen.spec import Groups, num_cores
from platforms.isa import IsaRow

# Counters and flags are so many int32 words apart: two lines of 64 bytes, which x86 prefetches as a
# pair, or one of 128.
LINE_WORDS = 32
# Pauses, of 40 ns on Zen 4, before a core that waits gives way to other threads. A core doubles its
# own number when that was enough and halves it when it was not: where every worker has a core, all
# wait for long and none gives way; where two share one, the first soon lets the second arrive.
MIN_SPINS, MAX_SPINS = 16, 2048
# Up to so many arrivals the counter itself is what they poll, which saves a transfer: 34 ns for two
# cores of one LLC. More of them would take its line away from each other while they arrive.
MAX_POLLED_ARRIVALS = 4

_PAUSES = {
    "x86_64": ("declare void @llvm.x86.sse2.pause()", "call void @llvm.x86.sse2.pause()"),
    "aarch64": ("declare void @llvm.aarch64.isb(i32)", "call void @llvm.aarch64.isb(i32 15)"),
}

_WAIT = """
declare i32 @sched_yield()
declare i32 @llvm.umax.i32(i32, i32)
declare i32 @llvm.umin.i32(i32, i32)
$declare_pause
define void @sw_barrier_wait(ptr %word, i32 %goal, ptr %patience) {
entry:
  %remembered = load i32, ptr %patience
  %at_least = call i32 @llvm.umax.i32(i32 %remembered, i32 $min_spins)
  %limit = call i32 @llvm.umin.i32(i32 %at_least, i32 $max_spins)
  br label %look
look:
  %spins = phi i32 [ 0, %entry ], [ %more, %spin ], [ %spins, %yield ]
  %gave_way = phi i1 [ false, %entry ], [ %gave_way, %spin ], [ true, %yield ]
  %seen = load atomic i32, ptr %word acquire, align 4
  %ahead = sub i32 %seen, %goal
  %is_there = icmp sge i32 %ahead, 0
  br i1 %is_there, label %done, label %wait
wait:
  %is_short = icmp ult i32 %spins, %limit
  br i1 %is_short, label %spin, label %yield
spin:
  $pause
  %more = add i32 %spins, 1
  br label %look
yield:
  %status = call i32 @sched_yield()
  br label %look
done:
  %half = lshr i32 %limit, 1
  %twice = shl i32 %limit, 1
  %next = select i1 %gave_way, i32 %half, i32 %twice
  store i32 %next, ptr %patience
  ret void
}"""

# One level: `member` arrives at its point; the last of `size` goes on, the others wait.
_MEET = """
$tables
define void @sw_barrier_meet$level(ptr %state, i32 %member, ptr %patience) {
  %point = $point
  %size = $size
  %line = mul i32 %point, $point_words
  %at = add i32 %line, $level_words
  %counter = getelementptr i32, ptr %state, i32 %at
  %flag = getelementptr i32, ptr %counter, i32 $line_words
  %arrived = atomicrmw add ptr %counter, i32 1 acq_rel
  %before = udiv i32 %arrived, %size
  %number = add i32 %before, 1
  %all = mul i32 %number, %size
  %count = add i32 %arrived, 1
  %is_last = icmp eq i32 %count, %all
  br i1 %is_last, label %last, label %wait
wait:
  call void @sw_barrier_wait(ptr $polled, ptr %patience)
  ret void
last:
  $go_on
  $release
  ret void
}"""

_ENTRY = """
define i32 @sw_barrier(ptr %state, i32 %core) {
  %line = mul i32 %core, $line_words
  %at = add i32 %line, $patience_words
  %patience = getelementptr i32, ptr %state, i32 %at
  call void @sw_barrier_meet0(ptr %state, i32 %core, ptr %patience)
  ret i32 0
}"""


@dataclass(frozen=True)
class MeetingLevel:
    """Points at which members meet. points: of each member, its point; sizes: members of each."""

    points: tuple[int, ...]
    sizes: tuple[int, ...]


def barrier_levels(groups: Groups) -> tuple[MeetingLevel, ...]:
    """Cores meet in groups, groups in nodes, nodes at one point; no level where nobody would meet.

    None for one core. Raises ValueError if a group or a node is empty.
    """
    if not groups or not all(groups) or any(size < 1 for node in groups for size in node):
        raise ValueError(f"groups are {groups}; nodes have one group or more, and groups one core")
    sizes = ([size for node in groups for size in node], [len(node) for node in groups])
    levels = []
    for counts in (*sizes, [len(groups)]):
        if max(counts) > 1:
            points = tuple(point for point, count in enumerate(counts) for _ in range(count))
            levels.append(MeetingLevel(points, tuple(counts)))
    return tuple(levels)


def barrier_spec(groups: Groups) -> TensorSpec:
    """The buffer in which the cores meet, in lines: a counter and a flag for each point, then the
    patience of each core.

    The first `meeting_lines` are zeros before the first barrier of a region; patience may be
    anything, and is best left from region to region.
    """
    num_lines = meeting_lines(groups) + num_cores(groups)
    return TensorSpec((num_lines, LINE_WORDS), np.dtype(np.int32))


def meeting_lines(groups: Groups) -> int:
    """Lines of counters and flags."""
    return 2 * sum(len(level.sizes) for level in barrier_levels(groups))


def barrier_text(groups: Groups, isa: IsaRow) -> str:
    """LLVM IR of `i32 sw_barrier(ptr state, i32 core)`, which returns when all cores have called.

    What a core wrote before is seen by all afterwards. Every core of `groups` needs a running
    thread of its own, or the others wait for ever.
    """
    levels = barrier_levels(groups)
    starts = accumulate((len(level.sizes) for level in levels), initial=0)
    declare_pause, pause = pause_text(isa)
    wait = Template(_WAIT).substitute(
        declare_pause=declare_pause, pause=pause, min_spins=MIN_SPINS, max_spins=MAX_SPINS
    )
    entry = Template(_ENTRY).substitute(
        line_words=LINE_WORDS, patience_words=meeting_lines(groups) * LINE_WORDS
    )
    meet = [
        _meet_text(index, level, start, is_root=index == len(levels) - 1)
        for index, (level, start) in enumerate(zip(levels, starts, strict=False))
    ]
    return "\n".join((wait, *meet, entry))


def pause_text(isa: IsaRow) -> tuple[str, str]:
    """The declaration and the call of what a core does while it polls, or nothing."""
    arch = str(isa.llvm_target()["mtriple"]).partition("-")[0]
    return _PAUSES.get(arch, ("", ""))


def _meet_text(index: int, level: MeetingLevel, start: int, is_root: bool) -> str:
    is_counter_polled = is_root and max(level.sizes) <= MAX_POLLED_ARRIVALS
    point_table, point = _look_up(f"@sw_barrier_points{index}", level.points, "%member")
    size_table, size = _look_up(f"@sw_barrier_sizes{index}", level.sizes, "%point")
    go_on = f"call void @sw_barrier_meet{index + 1}(ptr %state, i32 %point, ptr %patience)"
    return Template(_MEET).substitute(
        tables=f"{point_table}\n{size_table}",
        level=index,
        point=point,
        size=size,
        line_words=LINE_WORDS,
        point_words=2 * LINE_WORDS,
        level_words=2 * LINE_WORDS * start,
        polled="%counter, i32 %all" if is_counter_polled else "%flag, i32 %number",
        go_on="" if is_root else go_on,
        release="" if is_counter_polled else "store atomic i32 %number, ptr %flag release, align 4",
    )


def _look_up(table: str, values: tuple[int, ...], index: str) -> tuple[str, str]:
    """A constant table and the expression of its element `index`; no table for equal values."""
    if len(set(values)) == 1:
        return "", f"add i32 0, {values[0]}"
    items = ", ".join(f"i32 {value}" for value in values)
    array = f"[{len(values)} x i32]"
    text = f"""{table} = private unnamed_addr constant {array} [{items}]
define i32 {table}_at(i32 %i) {{
  %p = getelementptr {array}, ptr {table}, i32 0, i32 %i
  %v = load i32, ptr %p, !invariant.load !{{}}
  ret i32 %v
}}"""
    return text, f"call i32 {table}_at(i32 {index})"
