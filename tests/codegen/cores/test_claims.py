"""Shares are each computed once, in order of the operators, whoever claims them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.cores.barrier import barrier_spec
from codegen.cores.claims import (
    CLAIMED,
    FIRST_CORE_LINE,
    LINES_PER_CORE,
    MODE_LINE,
    STATIC,
    claims_spec,
    waited_ns,
)
from codegen.cores.parallel import Team, each_share, parallel_region
from codegen.functions import ir_module
from codegen.kit import Expr, T
from codegen.spec import Cut
from platforms.isa import isa_row
from platforms.memory import Arena
from sandwich.executor.launcher import Launcher

GENERIC = isa_row("generic")
NUM_OPERATORS = 40
CPUS = sorted(os.sched_getaffinity(0))[:2]
Body = Callable[[Expr, Expr, Any], None]  # (operator, share, values)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    """Workers that have homes, more of them than there are CPUs."""
    with closing(Launcher("claims", [CPUS[i % len(CPUS)] for i in range(5)])) as made:
        yield made


def run(launcher: Launcher, num_cores: int, mode: int, body: Body, rows: int) -> Any:
    """`rows` rows of values, one for each share, after NUM_OPERATORS operators; and the claims."""
    cut = Cut.of_step(num_cores)
    specs = [barrier_spec(((num_cores,),)), claims_spec(num_cores)]
    shapes = [(rows, cut.num_shares), *(spec.shape for spec in specs)]

    def build() -> None:
        handles = [T.arg(name, T.handle()) for name in ("values", "state", "claims")]
        values, state, claims = (
            T.match_buffer(handle, [T.int64(n) for n in shape], "int32")
            for handle, shape in zip(handles, shapes, strict=True)
        )
        team = Team(((num_cores,),), state, GENERIC, claims)
        with parallel_region(team), T.serial(0, NUM_OPERATORS) as operator:
            each_share(team, lambda share: body(operator, share, values))

    function = load(object_code(lower(ir_module("operators", build), GENERIC)), "operators")
    arena = Arena(1 << 20, "claims")
    arrays = [arena.array(shape, np.int32) for shape in shapes]
    arrays[2][MODE_LINE, 0] = mode
    for _ in range(3):
        arrays[0][:] = 0
        launcher.run(partial(function, *map(tensor, arrays)))
    return arrays[0], arrays[2]


def add_neighbours(operator: Expr, share: Expr, values: Any) -> None:
    """A value becomes a sum of its neighbours' of the operator before, and one."""
    count = int(values.shape[1])
    old = [values[operator % 2, (share + i) % count] for i in range(3)]
    T.buffer_store(values, old[0] + 3 * old[1] - old[2] + 1, [(operator + 1) % 2, share])


@pytest.mark.parametrize("mode", [STATIC, CLAIMED])
@pytest.mark.parametrize("num_cores", [2, 3, 5])
def test_operators_follow_each_other_and_compute_every_share_once(
    launcher: Launcher, num_cores: int, mode: int
) -> None:
    values, _ = run(launcher, num_cores, mode, add_neighbours, 2)
    expected = np.zeros(Cut.of_step(num_cores).num_shares, np.int32)
    for _ in range(NUM_OPERATORS):
        neighbours = [np.roll(expected, -i) for i in range(3)]
        expected = neighbours[0] + 3 * neighbours[1] - neighbours[2] + 1
    np.testing.assert_array_equal(values[NUM_OPERATORS % 2], expected)


def test_others_take_the_shares_of_a_core_that_is_held_up(launcher: Launcher) -> None:
    """The first share of each operator does not end before all others have, which its own core can
    not compute meanwhile.
    """

    def hold(operator: Expr, share: Expr, values: Any) -> None:
        count = int(values.shape[1])
        total = T.alloc_buffer((1,), "int32")
        with T.If(share == 0):
            with T.Then():
                T.buffer_store(total, T.int32(0), [0])
                with T.While(total[0] < (count - 1) * (operator + 1)):
                    T.evaluate(T.call_extern("int32", "sched_yield"))
                    T.buffer_store(total, T.int32(0), [0])
                    with T.serial(1, count) as other:
                        seen = T.call_extern("int32", "sw_seen", T.address_of(values[0, other]))
                        T.buffer_store(total, total[0] + seen, [0])
            with T.Else():
                T.buffer_store(values, values[0, share] + 1, [0, share])

    text = """
define i32 @sw_seen(ptr %word) {
  %seen = load atomic i32, ptr %word acquire, align 4
  ret i32 %seen
}"""

    def with_reads(operator: Expr, share: Expr, values: Any) -> None:
        with T.attr(T.int32(0), "pragma_import_llvm", text):
            hold(operator, share, values)

    values, _ = run(launcher, 2, CLAIMED, with_reads, 1)
    assert (values[0, 1:] == NUM_OPERATORS).all()


@pytest.mark.parametrize(("mode", "is_measured"), [(STATIC, True), (CLAIMED, False)])
def test_waiting_is_measured_in_static_steps(
    launcher: Launcher, mode: int, is_measured: bool
) -> None:
    _, claims = run(launcher, 2, mode, add_neighbours, 2)
    waited = waited_ns(claims)
    assert waited.shape == (2,)
    assert bool((waited > 0).all()) == is_measured


def test_every_worker_is_at_home_again_or_goes_there_next_time(launcher: Launcher) -> None:
    run(launcher, 5, CLAIMED, add_neighbours, 2)
    _, claims = run(launcher, 5, STATIC, add_neighbours, 2)
    pulled_word = 2
    lines = claims[FIRST_CORE_LINE + 1 :: LINES_PER_CORE]
    assert not lines[:, pulled_word].any()


@pytest.mark.parametrize(("num_cores", "per_core"), [(1, 1), (2, 8), (8, 8), (16, 4), (64, 2)])
def test_an_operator_is_cut_into_some_shares_for_each_core(num_cores: int, per_core: int) -> None:
    assert Cut.of_step(num_cores) == Cut(num_cores, per_core)
