"""The TopoTree: its making, its two transformations, and the candidates cut from it."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from platforms.machine import Machine
from platforms.machines import load_machine, recorded_machines
from platforms.process_limits import select_cpus
from platforms.topology import Core, LlcGroup, NumaNode, Socket, Topology
from schedules.topotree import Level, TopoTree, candidates, group, remove, render

Sizes = list[list[list[list[int]]]]  # sockets, nodes, groups, cores, each with this many threads


def machine_of(sizes: Sizes, cpus: tuple[int, ...] | None = None, quota: float = 1e9) -> Machine:
    """A machine of that shape, of which a process may use some CPUs and so many cores' time."""
    cpu, node = count(), count()

    def core(threads: int) -> Core:
        return Core(tuple(next(cpu) for _ in range(threads)), "", None, None)

    topology = Topology(
        tuple(
            Socket(
                i,
                tuple(
                    NumaNode(
                        next(node),
                        None,
                        (),
                        tuple(LlcGroup("L3", None, tuple(map(core, llc))) for llc in groups),
                    )
                    for groups in nodes
                ),
            )
            for i, nodes in enumerate(sizes)
        ),
        (),
        (),
    )
    recorded = load_machine("epyc-guest")
    affinity = topology.cpus if cpus is None else cpus
    selection = select_cpus(topology, affinity, None, quota)
    limits = replace(recorded.limits, affinity=affinity, selection=selection)
    return replace(recorded, topology=topology, limits=limits)


def lists(inner: st.SearchStrategy[object], most: int) -> st.SearchStrategy[list[object]]:
    return st.lists(inner, min_size=1, max_size=most)


shapes = lists(lists(lists(lists(st.integers(1, 2), 5), 4), 3), 3)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    whole = machine_of(draw(shapes))  # type: ignore[arg-type]
    cpus = draw(st.sets(st.sampled_from(whole.topology.cpus), min_size=1))
    selection = select_cpus(whole.topology, tuple(sorted(cpus)), None, draw(st.floats(0.1, 99)))
    return replace(whole, limits=replace(whole.limits, selection=selection))


@st.composite
def symmetric_machines(draw: st.DrawFn) -> Machine:
    sockets, nodes, groups, cores = (draw(st.integers(1, most)) for most in (3, 3, 5, 6))
    return machine_of([[[[2] * cores] * groups] * nodes] * sockets)


@given(machines())
def test_candidates_are_different_sets_of_usable_cpus_beginning_with_all(machine: Machine) -> None:
    found = candidates(TopoTree.of(machine))
    usable = set(machine.usable_cpus())
    assert set(found[0].cpus) == usable
    assert all(set(candidate.cpus) <= usable for candidate in found)
    assert len({frozenset(candidate.cpus) for candidate in found}) == len(found)
    assert len({candidate.name for candidate in found}) == len(found)
    assert min(len(candidate.cpus) for candidate in found) == 1


@given(machines())
def test_groups_are_contiguous_shares_that_share_a_cache(machine: Machine) -> None:
    group_of = {cpu: i for i, llc in enumerate(machine.topology.groups()) for cpu in llc.cpus}
    for candidate in candidates(TopoTree.of(machine)):
        assert sum(candidate.groups, ()) == candidate.cpus
        homes = [{group_of[cpu] for cpu in cpus} for cpus in candidate.groups]
        assert all(len(home) == 1 for home in homes)
        assert len(set.union(*homes)) == len(homes)


@given(symmetric_machines())
def test_what_is_cut_from_a_symmetric_machine_is_symmetric(machine: Machine) -> None:
    tree = TopoTree.of(machine)
    assert tree.is_symmetric
    for candidate in candidates(tree):
        assert TopoTree.of(machine, candidate.cpus).is_symmetric


@given(machines(), st.sampled_from([level for level in Level if level < Level.THREAD]))
def test_removing_keeps_at_most_so_many_children_and_the_rest_as_it_was(
    machine: Machine, level: Level
) -> None:
    tree = TopoTree.of(machine)
    kept = remove(tree, level, 2)
    assert set(kept.cpus) <= set(tree.cpus)
    assert [len(node.children) for node in kept.at(level)] == [
        min(2, len(node.children)) for node in tree.at(level)
    ]
    assert remove(kept, level, 2) == kept
    assert remove(tree, level, 99) == tree


def test_the_larger_children_stay() -> None:
    tree = TopoTree.of(machine_of([[[[1], [1, 1, 1]]]]))
    assert remove(tree, Level.NODE, 1).cpus == (1, 2, 3)


def test_an_asymmetric_removal_touches_only_what_it_is_told_to() -> None:
    tree = TopoTree.of(machine_of([[[[1, 1], [1, 1]]]]))
    kept = remove(tree, Level.GROUP, 1, where=lambda llc: llc.number == 2)
    assert kept.cpus == (0, 1, 2)
    assert not kept.is_symmetric


@pytest.mark.parametrize(
    ("level", "partitions"),
    [
        (Level.MACHINE, ((0, 1, 2, 3, 4),)),
        (Level.NODE, ((0, 1, 2), (3, 4))),
        (Level.GROUP, ((0, 1), (2,), (3, 4))),
        (Level.CORE, ((0,), (1,), (2,), (3,), (4,))),
    ],
)
def test_a_grouped_tree_has_a_partition_for_each_subtree(
    level: Level, partitions: tuple[tuple[int, ...], ...]
) -> None:
    tree = TopoTree.of(machine_of([[[[1, 1], [1]]], [[[1, 1]]]]))
    assert group(tree, level).partitions == partitions
    assert group(group(tree, Level.CORE), level) == group(tree, level)
    assert tree.partitions == (tree.cpus,)


def test_a_quota_leaves_an_uneven_tree_whose_candidates_are_even_where_they_can_be() -> None:
    tree = TopoTree.of(machine_of([[[[2] * 4] * 4]], quota=6.5))
    assert not tree.is_symmetric
    named = {candidate.name: candidate.groups for candidate in candidates(tree)}
    assert named["all 6 cores"] == ((0, 2, 4, 6), (8, 10))
    assert named["2 cores per LLC group"] == ((0, 2), (8, 10))
    assert named["3 cores per LLC group"] == ((0, 2, 4), (8, 10))


def test_only_the_equal_cores_of_a_hybrid_are_in_its_tree() -> None:
    assert TopoTree.of(load_machine("core-i7-1260p")).cpus == (0, 2, 4, 6)


def test_named_cpus_may_be_siblings_and_then_one_thread_per_core_is_a_candidate() -> None:
    tree = TopoTree.of(machine_of([[[[2, 2]]]]), cpus=(0, 1, 2, 3))
    named = {candidate.name: candidate.cpus for candidate in candidates(tree)}
    assert named["all 2 cores"] == (0, 1, 2, 3)
    assert named["1 thread per core"] == (0, 2)


@pytest.mark.parametrize("name", recorded_machines())
def test_there_are_a_few_dozen_candidates_at_most(name: str) -> None:
    assert len(candidates(TopoTree.of(load_machine(name)))) <= 60


def test_the_candidates_of_a_large_machine_have_the_names_that_are_talked_about() -> None:
    tree = TopoTree.of(load_machine("epyc-7h12-2s"))
    sizes = {candidate.name: len(candidate.cpus) for candidate in candidates(tree)}
    assert sizes["all 128 cores"] == 128
    assert sizes["one node"] == 64
    assert [sizes[f"{k} core{'s' * (k > 1)} per LLC group"] for k in (1, 2, 3)] == [32, 64, 96]
    assert sizes["one node, 8 LLC groups per node, 2 cores per LLC group"] == 16


def test_the_tree_is_drawn_with_what_each_use_takes() -> None:
    tree = TopoTree.of(machine_of([[[[1, 1], [1, 1]]]]))
    assert render(tree, {"prefill": (0, 1, 2, 3), "decode": (0,)}) == [
        "tree     4 cores, alike at every level",
        "socket 0",
        "  node 0",
        "    LLC group 0-1  prefill 0-1  decode 0",
        "    LLC group 2-3  prefill 2-3  decode -",
    ]
