"""How the cores of a plan work together: one launch, shares of the work, waiting for each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from codegen.cores.barrier import barrier_text, meeting_lines
from codegen.cores.claims import claims_text
from codegen.functions import View, call_inner
from codegen.kit import Expr, T
from codegen.spec import Groups, num_cores
from platforms.isa import IsaRow


@dataclass(frozen=True)
class Team:
    """The cores of a parallel region, by groups, and the buffer (barrier_spec) they meet in; claims
    (claims_spec) if they take shares of work.
    """

    groups: Groups
    state: Expr
    isa: IsaRow
    claims: Expr = None

    @property
    def num_cores(self) -> int:
        return num_cores(self.groups)


def split(
    core: Expr, num_cores: int, count: Expr, turn: Expr = 0, turns: Expr = 1
) -> tuple[Expr, Expr]:
    """The contiguous share [begin, end) of `count` items that `core` of `num_cores` owns, as
    codegen.cores.shares.share deals them, also by turns.
    """

    # No `//`: TVM makes a shift of it where num_cores is a power of two, and its simplifier raises
    # on products of shifted 64-bit addresses.
    def bound(number: Expr) -> Expr:
        if isinstance(turns, int) and turns == 1:
            return T.bind(T.truncdiv(number * count, num_cores))
        dealt = T.truncdiv(number * count * turns, num_cores)
        return T.bind(T.truncdiv(dealt + (turns - 1) - turn, turns))

    return bound(core), bound(core + 1)


def each_core(team: Team, body: Callable[[Expr], None]) -> None:
    """Run `body(core)` on every core of the parallel region, then wait for all of them."""
    if team.num_cores == 1:
        body(T.int32(0))
        return
    with T.parallel(0, team.num_cores) as core:
        body(core)
        T.evaluate(T.call_extern("int32", "sw_barrier", T.address_of(team.state[0, 0]), core))


def each_share(team: Team, body: Callable[[Expr], None]) -> None:
    """Run `body(share)` for every share of an operator, then wait until all are done."""
    if team.num_cores == 1:
        body(T.int32(0))
        return
    with T.parallel(0, team.num_cores) as core:
        share = T.alloc_buffer((1,), "int32")
        _claim(team, core, share)
        with T.While(share[0] >= 0):
            body(T.bind(share[0]))
            _claim(team, core, share)
        _meet(team, core)


def _claim(team: Team, core: Expr, share: Expr) -> None:
    """share[0] = one that the core is to compute, -1 if none is left."""

    def claim(given: Mapping[str, Expr]) -> None:
        claims = T.address_of(given["claims"][0, 0])
        T.buffer_store(
            given["share"], T.call_extern("int32", "sw_claim", claims, given["core"]), [0]
        )

    views = {"claims": _whole(team.claims), "share": View(share, (0,), (1,))}
    call_inner("claim", {"core": core, **views}, claim)


def _meet(team: Team, core: Expr) -> None:
    """Wait until all shares are done."""

    def meet(given: Mapping[str, Expr]) -> None:
        claims, meeting = (T.address_of(given[name][0, 0]) for name in ("claims", "meeting"))
        T.evaluate(T.call_extern("int32", "sw_share_meet", claims, meeting, given["core"]))

    views = {"claims": _whole(team.claims), "meeting": _whole(team.state)}
    call_inner("meet", {"core": core, **views}, meet)


def _whole(buffer: Expr) -> View:
    return View(buffer, (0, 0), tuple(buffer.shape))


@contextmanager
def parallel_region(team: Team) -> Iterator[None]:
    """One launch of a worker for each core around the `each_core` or `each_share` loops inside;
    none for one core.

    The pool of the thread that calls the program must have as many workers as there are cores, or
    more. Whatever a region that was broken off left in the state is gone when the next one starts.
    """
    if team.num_cores == 1:
        yield
        return
    with T.serial(0, meeting_lines(team.groups)) as line:
        T.buffer_store(team.state, T.int32(0), [line, 0])
    text = barrier_text(team.groups, team.isa)
    if team.claims is not None:
        text += claims_text(team.num_cores, team.isa)
    with T.attr(T.int32(0), "pragma_import_llvm", text):
        if team.claims is not None:
            T.evaluate(T.call_extern("int32", "sw_shares_begin", T.address_of(team.claims[0, 0])))
        with T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)):
            _on_each_core(team, "sw_shares_enter")
            yield
            _on_each_core(team, "sw_shares_leave")


def _on_each_core(team: Team, name: str) -> None:
    """A call for each core that takes shares, for which nobody waits."""
    if team.claims is not None:
        with T.parallel(0, team.num_cores) as core:
            T.evaluate(T.call_extern("int32", name, T.address_of(team.claims[0, 0]), core))


__all__ = ["Team", "each_core", "each_share", "parallel_region", "split"]
