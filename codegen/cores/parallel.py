"""How the cores of a plan work together: one launch, shares of the work, waiting for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from codegen.cores.barrier import barrier_text, meeting_lines
from codegen.cores.shares import share
from codegen.kit import Expr, T
from codegen.spec import Groups, num_cores
from platforms.isa import IsaRow


@dataclass(frozen=True)
class Team:
    """The cores of a parallel region, by groups, and the buffer (barrier_spec) they meet in."""

    groups: Groups
    state: Expr
    isa: IsaRow

    @property
    def num_cores(self) -> int:
        return num_cores(self.groups)


def split(core: Expr, num_cores: int, count: Expr) -> tuple[Expr, Expr]:
    """The contiguous share [begin, end) of `count` items that `core` of `num_cores` owns."""
    begin, end = share(core, num_cores, count)
    return T.bind(begin), T.bind(end)


def each_core(team: Team, body: Callable[[Expr], None]) -> None:
    """Run `body(core)` on every core of the parallel region, then wait for all of them."""
    if team.num_cores == 1:
        body(T.int32(0))
        return
    with T.parallel(0, team.num_cores) as core:
        body(core)
        T.evaluate(T.call_extern("int32", "sw_barrier", T.address_of(team.state[0, 0]), core))


@contextmanager
def parallel_region(team: Team) -> Iterator[None]:
    """One launch of a worker for each core around the `each_core` loops inside; none for one core.

    The pool of the thread that calls the program must have as many workers as there are cores, or
    more. Whatever a region that was broken off left in the state is gone when the next one starts.
    """
    if team.num_cores == 1:
        yield
        return
    with T.serial(0, meeting_lines(team.groups)) as line:
        T.buffer_store(team.state, T.int32(0), [line, 0])
    with T.attr(T.int32(0), "pragma_import_llvm", barrier_text(team.groups, team.isa)):
        with T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)):
            yield


__all__ = ["Team", "each_core", "parallel_region", "split"]
