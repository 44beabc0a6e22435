"""Shares of an operator's work, and who computes them: as values, and their code, as LLVM IR.

An operator is cut into `num_shares` shares, whatever happens, so results never depend on who
computes one. In a *static* step each core computes its own, and all meet at a barrier. In a
*claimed* step a core takes its own shares first, then those that others have not begun, and goes on
when all are done: a core that a neighbour has taken away is missed for nothing but the one share it
holds. That share is waited for by giving its thread a better place: whoever waits too long lets it
run on the own core, and it goes home when the share is done.

Claims only ever rise in a step: operator k of a step has the numbers [k * size, (k + 1) * size) of
each core's counter, so that a core which wakes up late finds nothing left of the operators that it
has slept through. (Work stealing with a shared counter for each owner, as in Blumofe and Leiserson,
"Scheduling Multithreaded Computations by Work Stealing", JACM 1999, without its deques.)
"""

from __future__ import annotations

from string import Template

import numpy as np

from codegen.cores.barrier import LINE_WORDS, pause_text
from codegen.layout.arrays import TensorSpec
from codegen.spec import Cut
from platforms.isa import IsaRow

# The buffer, in lines: how a step goes, shares that are done; then of each core its claims, what
# the others must know of it, and the CPUs it is at home on.
MODE_LINE, DONE_LINE, FIRST_CORE_LINE, LINES_PER_CORE = 0, 1, 2, 3
STATIC, CLAIMED = 0, 1
# Words of a core's second line; from WAITED_WORD on, 64 bits of nanoseconds in barriers.
_EPOCH, _HOLDS, _PULLED, _THREAD, _LEFT, WAITED_WORD = 0, 1, 2, 3, 4, 6

# Pauses, of 40 ns on Zen 4, before a core that waits for a share looks after its holder: longer
# than most shares take, and far shorter than a time slice.
PATIENCE = 2500

_TEXT = """
declare i32 @gettid()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare i32 @clock_gettime(i32, ptr)
define ptr @sw_claims_of(ptr %state, i32 %core) {
  %lines = mul i32 %core, $core_words
  %at = add i32 %lines, $first_words
  %p = getelementptr i32, ptr %state, i32 %at
  ret ptr %p
}
define ptr @sw_word_of(ptr %state, i32 %core, i32 %word) {
  %claims = call ptr @sw_claims_of(ptr %state, i32 %core)
  %at = add i32 %word, $line_words
  %p = getelementptr i32, ptr %claims, i32 %at
  ret ptr %p
}
define ptr @sw_home_of(ptr %state, i32 %core) {
  %claims = call ptr @sw_claims_of(ptr %state, i32 %core)
  %p = getelementptr i32, ptr %claims, i32 $home_words
  ret ptr %p
}
define i64 @sw_clock_ns() {
  %time = alloca [2 x i64]
  %status = call i32 @clock_gettime(i32 1, ptr %time)
  %seconds = load i64, ptr %time
  %rest = getelementptr i64, ptr %time, i64 1
  %ns = load i64, ptr %rest
  %scaled = mul i64 %seconds, 1000000000
  %sum = add i64 %scaled, %ns
  ret i64 %sum
}
define i32 @sw_shares_begin(ptr %state) {
entry:
  %done = getelementptr i32, ptr %state, i32 $line_words
  store i32 0, ptr %done
  br label %loop
loop:
  %core = phi i32 [ 0, %entry ], [ %next, %loop ]
  %claims = call ptr @sw_claims_of(ptr %state, i32 %core)
  store i32 0, ptr %claims
  %epoch = call ptr @sw_word_of(ptr %state, i32 %core, i32 $epoch)
  store i32 0, ptr %epoch
  %holds = call ptr @sw_word_of(ptr %state, i32 %core, i32 $holds)
  store i32 0, ptr %holds
  %left = call ptr @sw_word_of(ptr %state, i32 %core, i32 $left)
  store i32 0, ptr %left
  %waited = call ptr @sw_word_of(ptr %state, i32 %core, i32 $waited)
  store i64 0, ptr %waited
  %next = add i32 %core, 1
  %more = icmp slt i32 %next, $num_cores
  br i1 %more, label %loop, label %end
end:
  ret i32 0
}
define void @sw_go_home(ptr %state, i32 %core) noinline {
  %pulled = call ptr @sw_word_of(ptr %state, i32 %core, i32 $pulled)
  %was = load atomic i32, ptr %pulled acquire, align 4
  %is_away = icmp ne i32 %was, 0
  br i1 %is_away, label %go, label %end
go:
  store atomic i32 0, ptr %pulled release, align 4
  %home = call ptr @sw_home_of(ptr %state, i32 %core)
  %status = call i32 @sched_setaffinity(i32 0, i64 $mask_bytes, ptr %home)
  br label %end
end:
  ret void
}
define i32 @sw_shares_enter(ptr %state, i32 %core) {
  call void @sw_go_home(ptr %state, i32 %core)
  %mode = load i32, ptr %state
  %is_claimed = icmp eq i32 %mode, $claimed
  %word = call ptr @sw_word_of(ptr %state, i32 %core, i32 $thread)
  br i1 %is_claimed, label %look, label %end
look:
  %home = call ptr @sw_home_of(ptr %state, i32 %core)
  %status = call i32 @sched_getaffinity(i32 0, i64 $mask_bytes, ptr %home)
  %is_known = icmp sge i32 %status, 0
  br i1 %is_known, label %name, label %end
name:
  %thread = call i32 @gettid()
  store atomic i32 %thread, ptr %word release, align 4
  br label %end
end:
  ret i32 0
}
define i32 @sw_claim(ptr %state, i32 %core) {
entry:
  %mode = load i32, ptr %state
  %is_claimed = icmp eq i32 %mode, $claimed
  %holds = call ptr @sw_word_of(ptr %state, i32 %core, i32 $holds)
  %epoch_at = call ptr @sw_word_of(ptr %state, i32 %core, i32 $epoch)
  %epoch = load i32, ptr %epoch_at
  %first = mul i32 %epoch, $size
  %last = add i32 %first, $size
  br i1 %is_claimed, label %finish, label %own
own:
  %mine = call ptr @sw_claims_of(ptr %state, i32 %core)
  %at = load i32, ptr %mine
  %is_left = icmp slt i32 %at, %last
  br i1 %is_left, label %take, label %none
take:
  %after = add i32 %at, 1
  store i32 %after, ptr %mine
  br label %found
finish:
  %held = load i32, ptr %holds
  %was_held = icmp ne i32 %held, 0
  br i1 %was_held, label %report, label %search
report:
  store atomic i32 0, ptr %holds release, align 4
  %done = getelementptr i32, ptr %state, i32 $line_words
  %before = atomicrmw add ptr %done, i32 1 acq_rel
  call void @sw_go_home(ptr %state, i32 %core)
  br label %search
search:
  store atomic i32 1, ptr %holds release, align 4
  br label %victims
victims:
  %i = phi i32 [ 0, %search ], [ %next_i, %empty ]
  %sum = add i32 %core, %i
  %victim = urem i32 %sum, $num_cores
  %theirs = call ptr @sw_claims_of(ptr %state, i32 %victim)
  br label %try
try:
  %seen = load atomic i32, ptr %theirs acquire, align 4
  %is_one_left = icmp slt i32 %seen, %last
  br i1 %is_one_left, label %swap, label %empty
swap:
  %seen_after = add i32 %seen, 1
  %pair = cmpxchg ptr %theirs, i32 %seen, i32 %seen_after acq_rel acquire
  %is_mine = extractvalue { i32, i1 } %pair, 1
  br i1 %is_mine, label %found, label %try
empty:
  %next_i = add i32 %i, 1
  %has_more = icmp slt i32 %next_i, $num_cores
  br i1 %has_more, label %victims, label %nothing
nothing:
  store atomic i32 0, ptr %holds release, align 4
  br label %none
found:
  %owner = phi i32 [ %core, %take ], [ %victim, %swap ]
  %number = phi i32 [ %at, %take ], [ %seen, %swap ]
  %place = sub i32 %number, %first
  %base = mul i32 %owner, $size
  %share = add i32 %base, %place
  ret i32 %share
none:
  ret i32 -1
}
define void @sw_pull(ptr %state, i32 %core, i32 %word, i32 %unless) noinline {
entry:
  %here = call ptr @sw_home_of(ptr %state, i32 %core)
  br label %loop
loop:
  %i = phi i32 [ 1, %entry ], [ %next, %skip ]
  %sum = add i32 %core, %i
  %other = urem i32 %sum, $num_cores
  %at = call ptr @sw_word_of(ptr %state, i32 %other, i32 %word)
  %value = load atomic i32, ptr %at acquire, align 4
  %is_fine = icmp eq i32 %value, %unless
  br i1 %is_fine, label %skip, label %late
late:
  %thread_at = call ptr @sw_word_of(ptr %state, i32 %other, i32 $thread)
  %thread = load atomic i32, ptr %thread_at acquire, align 4
  %is_known = icmp ne i32 %thread, 0
  br i1 %is_known, label %move, label %skip
move:
  %status = call i32 @sched_setaffinity(i32 %thread, i64 $mask_bytes, ptr %here)
  %pulled = call ptr @sw_word_of(ptr %state, i32 %other, i32 $pulled)
  store atomic i32 1, ptr %pulled release, align 4
  br label %skip
skip:
  %next = add i32 %i, 1
  %more = icmp slt i32 %next, $num_cores
  br i1 %more, label %loop, label %end
end:
  ret void
}
define i32 @sw_share_meet(ptr %state, ptr %barrier, i32 %core) {
entry:
  %mode = load i32, ptr %state
  %is_claimed = icmp eq i32 %mode, $claimed
  %epoch_at = call ptr @sw_word_of(ptr %state, i32 %core, i32 $epoch)
  %before = load i32, ptr %epoch_at
  %epoch = add i32 %before, 1
  store i32 %epoch, ptr %epoch_at
  br i1 %is_claimed, label %claimed, label %static
static:
  %started = call i64 @sw_clock_ns()
  %met = call i32 @sw_barrier(ptr %barrier, i32 %core)
  %ended = call i64 @sw_clock_ns()
  %took = sub i64 %ended, %started
  %waited_at = call ptr @sw_word_of(ptr %state, i32 %core, i32 $waited)
  %waited = load i64, ptr %waited_at
  %total = add i64 %waited, %took
  store i64 %total, ptr %waited_at
  ret i32 0
claimed:
  %goal = mul i32 %epoch, $num_shares
  %done = getelementptr i32, ptr %state, i32 $line_words
  br label %look
look:
  %spins = phi i32 [ 0, %claimed ], [ %more, %spin ], [ 0, %rescue ], [ %more_late, %yield ]
  %seen = load atomic i32, ptr %done acquire, align 4
  %ahead = sub i32 %seen, %goal
  %is_done = icmp sge i32 %ahead, 0
  br i1 %is_done, label %end, label %wait
wait:
  %is_short = icmp ult i32 %spins, $patience
  br i1 %is_short, label %spin, label %late
spin:
  $pause
  %more = add i32 %spins, 1
  br label %look
late:
  %is_first = icmp eq i32 %spins, $patience
  br i1 %is_first, label %rescue_first, label %again
rescue_first:
  call void @sw_pull(ptr %state, i32 %core, i32 $holds, i32 0)
  br label %yield
again:
  %is_too_late = icmp uge i32 %spins, $twice
  br i1 %is_too_late, label %rescue, label %yield
rescue:
  br label %look
yield:
  %status = call i32 @sched_yield()
  %more_late = add i32 %spins, 1
  br label %look
end:
  ret i32 0
}
define i32 @sw_shares_leave(ptr %state, i32 %core) {
entry:
  %left = call ptr @sw_word_of(ptr %state, i32 %core, i32 $left)
  store atomic i32 1, ptr %left release, align 4
  %mode = load i32, ptr %state
  %is_claimed = icmp eq i32 %mode, $claimed
  %is_caller = icmp eq i32 %core, 0
  %is_mine = and i1 %is_claimed, %is_caller
  br i1 %is_mine, label %look, label %end
look:
  %spins = phi i32 [ 0, %entry ], [ %more, %wait ], [ 0, %rescue ]
  br label %others
others:
  %i = phi i32 [ 1, %look ], [ %next, %there ]
  %at = call ptr @sw_word_of(ptr %state, i32 %i, i32 $left)
  %has_left = load atomic i32, ptr %at acquire, align 4
  %is_gone = icmp ne i32 %has_left, 0
  br i1 %is_gone, label %there, label %late
there:
  %next = add i32 %i, 1
  %is_last = icmp sge i32 %next, $num_cores
  br i1 %is_last, label %end, label %others
late:
  %more = add i32 %spins, 1
  %is_long = icmp ugt i32 %more, $leave_patience
  br i1 %is_long, label %rescue, label %wait
wait:
  $pause
  br label %look
rescue:
  call void @sw_pull(ptr %state, i32 %core, i32 $left, i32 1)
  %status = call i32 @sched_yield()
  br label %look
end:
  ret i32 0
}"""


def claims_spec(num_cores: int) -> TensorSpec:
    """The buffer of claims, zeros before the first step; its first word is STATIC or CLAIMED."""
    num_lines = FIRST_CORE_LINE + LINES_PER_CORE * num_cores
    return TensorSpec((num_lines, LINE_WORDS), np.dtype(np.int32))


def waited_ns(claims: np.ndarray) -> np.ndarray:
    """int64 (num_cores,): what each core spent in barriers in the last static step, a view."""
    lines = claims[FIRST_CORE_LINE + 1 :: LINES_PER_CORE]
    return lines[:, WAITED_WORD : WAITED_WORD + 2].view(np.int64)[:, 0]


def claims_text(num_cores: int, isa: IsaRow) -> str:
    """LLVM IR, beside that of the barrier, of what a region calls; `state` is a claims_spec buffer:

    sw_shares_begin(state), once before the cores start; on each core sw_shares_enter(state, core)
    first and sw_shares_leave(state, core) last; for each operator sw_claim(state, core), again and
    again, which gives a share or, if none is left, -1, and sw_share_meet(state, barrier, core).
    """
    _, pause = pause_text(isa)
    cut = Cut.of_step(num_cores)
    return Template(_TEXT).substitute(
        pause=pause,
        num_cores=num_cores,
        size=cut.per_core,
        num_shares=cut.num_shares,
        line_words=LINE_WORDS,
        core_words=LINES_PER_CORE * LINE_WORDS,
        first_words=FIRST_CORE_LINE * LINE_WORDS,
        home_words=2 * LINE_WORDS,
        mask_bytes=4 * LINE_WORDS,
        claimed=CLAIMED,
        patience=PATIENCE,
        twice=2 * PATIENCE,
        leave_patience=PATIENCE // 10,
        epoch=_EPOCH,
        holds=_HOLDS,
        pulled=_PULLED,
        thread=_THREAD,
        left=_LEFT,
        waited=WAITED_WORD,
    )
