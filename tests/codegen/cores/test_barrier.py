"""The barrier: regions that depend on each other against NumPy, with more workers than CPUs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest

from codegen.compile import load, lower, object_code, tensor
from codegen.cores.barrier import (
    MAX_SPINS,
    MIN_SPINS,
    MeetingLevel,
    barrier_levels,
    barrier_spec,
    barrier_text,
)
from codegen.cores.parallel import Team, each_core, parallel_region
from codegen.functions import ir_module
from codegen.kit import Expr, T
from codegen.probes.barriers import BarrierProbe
from codegen.spec import Groups
from platforms.isa import isa_row
from platforms.memory import Arena
from sandwich.executor.launcher import Launcher

GENERIC = isa_row("generic")
NUM_VALUES = 8
NUM_REGIONS = 60
NUM_WORKERS = 8
CPUS = sorted(os.sched_getaffinity(0))[:2]
GROUPS: tuple[Groups, ...] = (
    ((1,),),
    ((2,),),
    ((3,),),
    ((5,),),
    ((1, 1),),
    ((3, 1),),
    ((2,), (1,)),
    ((2, 2), (2, 2)),
    ((1, 2), (4,)),
    ((1,), (1,), (1,), (1,), (1,)),
)


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with closing(
        Launcher("team", [CPUS[i % len(CPUS)] for i in range(8)], is_pinned=False)
    ) as made:
        yield made


def regions(groups: Groups) -> Callable[[int, np.ndarray, np.ndarray], None]:
    """(num_regions, values, state): every value becomes a sum of its neighbours' in each region."""
    state_spec = barrier_spec(groups)

    def build() -> None:
        num_regions = T.arg("num_regions", T.int32())
        handles = [T.arg(name, T.handle()) for name in ("values", "state")]
        values = T.match_buffer(handles[0], [T.int64(2), T.int64(NUM_VALUES)], "int32")
        state = T.match_buffer(handles[1], [T.int64(n) for n in state_spec.shape], "int32")
        team = Team(groups, state, GENERIC)
        with parallel_region(team), T.serial(0, num_regions) as turn:

            def add(core: Expr) -> None:
                with T.serial(0, NUM_VALUES) as i, T.If(i % team.num_cores == core), T.Then():
                    old = [values[turn % 2, (i + j) % NUM_VALUES] for j in range(3)]
                    T.buffer_store(values, old[0] + 3 * old[1] - old[2], [(turn + 1) % 2, i])

            each_core(team, add)

    function = load(object_code(lower(ir_module("regions", build), GENERIC)), "regions")
    return lambda count, values, state: function(count, tensor(values), tensor(state))


def truth(values: np.ndarray) -> np.ndarray:
    for _ in range(NUM_REGIONS):
        values = values + 3 * np.roll(values, -1) - np.roll(values, -2)
    return values


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_region_sees_all_that_the_one_before_has_written(
    launcher: Launcher, groups: Groups
) -> None:
    arena = Arena(1 << 14, "barrier")
    values = arena.array((2, NUM_VALUES), np.int32)
    state = arena.array(barrier_spec(groups).shape, np.int32)
    run = regions(groups)
    start = np.arange(NUM_VALUES, dtype=np.int32)
    for left_behind in (0, 1, 7):  # by a region that was broken off
        state[:] = left_behind
        values[:] = start
        launcher.run(lambda: run(NUM_REGIONS, values, state))
        assert values[0].tolist() == truth(start).tolist()


@pytest.mark.parametrize("is_tvm", [False, True])
def test_the_probe_makes_as_many_barriers_as_it_is_told(launcher: Launcher, is_tvm: bool) -> None:
    probe = BarrierProbe(GENERIC, ((2, 1),), is_tvm)
    state = Arena(1 << 12, "barrier").array(probe.state_spec.shape, np.int32)
    for num_barriers in (5, 0, 3):
        launcher.run(partial(probe.run, state, num_barriers))
        if not is_tvm:
            assert state[:6, 0].tolist() == [
                *(2 * num_barriers, num_barriers),  # the group of two: arrivals, releases
                *(num_barriers, num_barriers),  # the group of one
                *(2 * num_barriers, 0),  # the node, whose counter is polled itself
            ]


@pytest.mark.parametrize("garbage", [0, -1, 1 << 30])
def test_a_core_never_waits_for_longer_or_shorter_than_the_bounds(
    launcher: Launcher, garbage: int
) -> None:
    probe = BarrierProbe(GENERIC, ((2,),))
    state = Arena(1 << 12, "barrier").array(probe.state_spec.shape, np.int32)
    state[:] = garbage
    launcher.run(lambda: probe.run(state, 40))
    patience = state[2:, 0]
    assert (patience >= MIN_SPINS // 2).all()
    assert (patience <= 2 * MAX_SPINS).all()


def test_cores_meet_in_their_group_groups_in_their_node_nodes_at_one_point() -> None:
    assert barrier_levels(((2, 1), (3,))) == (
        MeetingLevel(points=(0, 0, 1, 2, 2, 2), sizes=(2, 1, 3)),
        MeetingLevel(points=(0, 0, 1), sizes=(2, 1)),
        MeetingLevel(points=(0, 0), sizes=(2,)),
    )


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [
        (((1,),), []),
        (((4,),), [(4,)]),
        (((1, 1, 1),), [(3,)]),
        (((1,), (1,)), [(2,)]),
        (((2,), (2,)), [(2, 2), (2,)]),
    ],
)
def test_a_level_at_which_nobody_would_meet_is_left_out(groups: Groups, sizes: list[Any]) -> None:
    assert [level.sizes for level in barrier_levels(groups)] == sizes


@pytest.mark.parametrize("groups", [(), ((),), ((2,), ()), ((2, 0),)])
def test_empty_groups_are_refused(groups: Groups) -> None:
    with pytest.raises(ValueError, match=r"nodes have one group or more, and groups one core"):
        barrier_levels(groups)


def test_counters_and_flags_lie_128_bytes_apart() -> None:
    spec = barrier_spec(((2, 2), (2, 2)))
    assert spec.shape == (2 * (4 + 2 + 1) + 8, 32)  # and a line for each core
    assert spec.dtype.itemsize * spec.shape[1] == 128


@pytest.mark.parametrize(("isa", "pause"), [("avx2", "x86.sse2.pause"), ("neon", "aarch64.isb")])
def test_a_core_that_waits_tells_the_processor_and_then_the_system(isa: str, pause: str) -> None:
    text = barrier_text(((2,),), isa_row(isa))
    assert f"call void @llvm.{pause}" in text
    assert "call i32 @sched_yield" in text
