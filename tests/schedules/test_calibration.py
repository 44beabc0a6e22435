"""Calibrations: groups out of line times, rates out of measurements, and the file they live in."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.spec import Phase, WeightFormat
from platforms.machines import load_machine
from schedules.calibration import (
    BarrierTime,
    Calibration,
    CoreSet,
    LineTime,
    PeakRate,
    ProgramRates,
    ReadRate,
    calibration_file,
    kernel_kind,
    line_groups,
    load_calibration,
    save_calibration,
)
from schedules.rates import Curve, estimated_rates
from schedules.records import current_generator
from schedules.topology_meters import ALL_PAIRS, line_pairs, measured_sets
from schedules.topotree import Level, TopoTree, candidates

ROME = load_machine("epyc-7h12-2s")
W8A8 = WeightFormat("int8", activations="int8")
KERNELS = estimated_rates(ROME, WeightFormat("bfloat16")).prefill


def times(
    groups: list[list[int]], pairs: list[tuple[int, int]], near: float, far: float, seed: int = 0
) -> list[LineTime]:
    """Line times of cores in `groups`, up to 15 % apart from each other."""
    rng = np.random.default_rng(seed)
    group_of = {cpu: i for i, group in enumerate(groups) for cpu in group}
    return [
        LineTime(a, b, (near if group_of[a] == group_of[b] else far) * rng.uniform(1, 1.15))
        for a, b in pairs
    ]


@pytest.mark.parametrize(("size", "num_groups"), [(1, 5), (2, 1), (2, 4), (4, 8), (8, 4), (3, 10)])
def test_groups_are_found_in_the_times_of_all_pairs(size: int, num_groups: int) -> None:
    groups = [list(range(i * size, (i + 1) * size)) for i in range(num_groups)]
    cpus = [cpu for group in groups for cpu in group]
    lines = times(groups, list(combinations(cpus, 2)), 25, 110)
    expected = groups if size > 1 else [cpus]  # without near pairs there is nothing to tell apart
    assert [list(group) for group in line_groups(cpus, lines)] == expected


def test_groups_whose_cores_are_numbered_by_turns_are_found() -> None:
    groups = [list(range(i, 16, 4)) for i in range(4)]
    found = line_groups(range(16), times(groups, list(combinations(range(16), 2)), 25, 110))
    assert [list(group) for group in found] == groups


@pytest.mark.parametrize("size", [4, 8, 16, 64])
def test_groups_of_128_cores_are_found_in_a_part_of_the_pairs(size: int) -> None:
    cpus = list(range(128))
    pairs = line_pairs(cpus)
    assert len(pairs) < 128 * 10
    groups = [cpus[i : i + size] for i in range(0, 128, size)]
    assert [list(group) for group in line_groups(cpus, times(groups, pairs, 25, 110))] == groups


def test_a_mesh_without_a_gap_is_one_group_and_so_is_a_machine_without_times() -> None:
    mesh = [LineTime(a, b, 45 + a + b) for a, b in combinations(range(16), 2)]
    assert line_groups(range(16), mesh) == (tuple(range(16)),)
    assert line_groups((3,), ()) == ((3,),)


@given(st.integers(0, 10**6))
def test_a_pair_that_was_disturbed_does_no_harm(seed: int) -> None:
    groups = [[0, 1, 2, 3], [4, 5, 6, 7]]
    lines = times(groups, list(combinations(range(8), 2)), 25, 110, seed)
    at = seed % len(lines)
    lines[at] = replace(lines[at], ns=lines[at].ns * 10)
    assert [list(group) for group in line_groups(range(8), lines)] == groups


def test_hidden_groups_become_groups_of_the_tree() -> None:
    guest = load_machine("epyc-9655")
    socket = guest.topology.sockets[0]
    merged = replace(socket.nodes[0].groups[0], cores=tuple(guest.topology.cores()))
    socket = replace(socket, nodes=(replace(socket.nodes[0], groups=(merged,)),))
    hidden = replace(guest, topology=replace(guest.topology, sockets=(socket,)))
    assert TopoTree.of(hidden).count(Level.GROUP) == 1
    groups = [tuple(range(i, i + 8)) for i in range(0, 96, 8)]
    tree = TopoTree.of(hidden, groups=groups)
    assert [llc.cpus for llc in tree.at(Level.GROUP)] == groups
    assert "2 cores per LLC group" in {candidate.name for candidate in candidates(tree)}
    whole = TopoTree.of(guest, groups=[range(96)])  # what sysfs knows is never undone
    assert whole.count(Level.GROUP) == 12


def calibration() -> Calibration:
    groups = [list(range(i, i + 4)) for i in range(0, 128, 4)]
    one, four, node = CoreSet(1, 1, 1), CoreSet(4, 1, 1), CoreSet(4, 16, 1)
    return Calibration(
        fingerprint=ROME.fingerprint,
        isa=ROME.isa,
        generator=current_generator(),
        cpus=tuple(range(128)),
        reads=(
            ReadRate(one, False, 18.0),
            ReadRate(four, False, 25.0),
            ReadRate(node, False, 140.0),
            ReadRate(CoreSet(4, 16, 2), False, 270.0),
            ReadRate(node, True, 60.0),
        ),
        barriers=(BarrierTime(four, 0.4), BarrierTime(node, 4.0)),
        peaks=(PeakRate("bfloat16", 1, 90.0), PeakRate("bfloat16", 128, 128 * 75.0)),
        lines=tuple(times(groups, line_pairs(range(128)), 20, 100)),
        programs=tuple(
            ProgramRates("bfloat16", phase.value, replace(KERNELS, embed_ns=9.0), 11.0)
            for phase in Phase
        ),
    )


def test_rates_are_those_that_were_measured() -> None:
    rates = calibration().rates(ROME, WeightFormat("bfloat16"))
    assert rates.is_measured
    assert rates.group_gbps == Curve(((1.0, 18.0), (4.0, 25.0)))
    assert (rates.node_gbps, rates.link_gbps) == (140.0, 60.0)
    assert rates.busy_speed.at(1) == 1.0
    assert rates.busy_speed.at(128) == pytest.approx(75 / 90)
    assert 20 <= rates.group_line_ns <= 23
    assert 100 <= rates.node_line_ns <= 115
    assert rates.decode.embed_ns == 9.0
    assert rates.launch_us == 11.0


def test_barriers_are_fitted_to_all_that_were_measured() -> None:
    found = calibration()
    rates = found.rates(ROME, WeightFormat("bfloat16"))
    shapes = [barrier.cores.seats.barrier_us(rates) for barrier in found.barriers]
    assert shapes[0] < shapes[1]
    assert shapes[1] == pytest.approx(4.0, rel=0.1)


def test_what_was_not_measured_stays_an_estimate() -> None:
    empty = replace(
        calibration(), reads=(), barriers=(), peaks=(), lines=(), programs=(), cpus=(0,)
    )
    assert empty.rates(ROME, WeightFormat("float32")) == replace(
        estimated_rates(ROME, WeightFormat("float32")), is_measured=True
    )
    measured = calibration().rates(ROME, W8A8)
    assert measured.decode == estimated_rates(ROME, W8A8).decode
    assert measured.busy_speed.at(128) == pytest.approx(75 / 90)  # of bfloat16, as good as any


def test_formats_that_differ_in_their_groups_have_the_same_kernels() -> None:
    groups = [replace(W8A8, group=group) for group in (0, 32, 128)]
    assert {kernel_kind(weights) for weights in groups} == {"int8 x int8"}
    assert kernel_kind(WeightFormat("int8")) != kernel_kind(W8A8)
    program = ProgramRates("int8 x int8", "prefill", replace(KERNELS, norm_ns=7.0), 1.0)
    found = replace(calibration(), programs=(program, replace(program, phase="decode")))
    for weights in groups:
        assert found.rates(ROME, weights).decode.norm_ns == 7.0


def test_groups_are_found_only_where_all_usable_cores_were_measured() -> None:
    found = calibration()
    assert len(found.groups_of(ROME)) == 32
    few = replace(found, cpus=found.cpus[:4], lines=found.lines[:1])
    assert few.groups_of(ROME) == ()


def test_a_calibration_of_fewer_cores_than_may_be_used_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = calibration()
    save_calibration(tmp_path, ROME, replace(found, cpus=found.cpus[:64]))
    assert load_calibration(tmp_path, ROME) is None
    assert "64 cores were measured, 128 may be used now" in caplog.text


def test_a_calibration_of_other_kernels_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_calibration(tmp_path, ROME, calibration())
    assert load_calibration(tmp_path, ROME) is not None
    assert not caplog.records
    found = replace(calibration(), generator="0" * 12)
    save_calibration(tmp_path, ROME, found)
    assert load_calibration(tmp_path, ROME) == found
    assert "`sandwich probe --measure` renews it" in caplog.text


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    path = save_calibration(tmp_path, ROME, calibration())
    assert path == calibration_file(tmp_path, ROME)
    assert load_calibration(tmp_path, ROME) == calibration()
    assert load_calibration(tmp_path, load_machine("graviton3")) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace('"version": 2', '"version": 1'),
        lambda text: text.replace('"version": 2,', ""),
        lambda text: text.replace(ROME.fingerprint, "0" * 12),
        lambda text: text.replace('"gbps": 18.0', '"gbps": "much"'),
    ],
)
def test_a_file_that_cannot_be_used_is_a_warning_with_the_remedy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: object
) -> None:
    path = save_calibration(tmp_path, ROME, calibration())
    text = path.read_text()
    assert callable(change)
    assert change(text) != text
    path.write_text(change(text))
    with caplog.at_level(logging.WARNING):
        assert load_calibration(tmp_path, ROME) is None
    assert "sandwich probe --measure" in caplog.text


def test_a_calibration_is_shown_in_a_few_lines() -> None:
    text = "\n".join(calibration().render())
    assert "128 cores 270" in text
    assert "64 cores from another node 60" in text
    assert "32 by cache line times" in text


@pytest.mark.parametrize(
    "name", ["epyc-guest", "epyc-7h12-2s", "kunpeng-920-4826-2s", "xeon-gold-6151-2s", "graviton3"]
)
def test_what_is_measured_has_the_shape_that_it_says(name: str) -> None:
    tree = TopoTree.of(load_machine(name))
    sets = measured_sets(tree)
    for cores in sets:
        assert len(set(cores.cpus)) == len(cores.cpus) == cores.shape.num_cores
        assert not cores.home or len(cores.home) == len(cores.cpus)
        assert set(cores.cpus) | set(cores.home) <= set(tree.cpus)
    assert len({(cores.shape, bool(cores.home)) for cores in sets}) == len(sets) <= 14
    assert sets[0].cpus == tree.cpus[:1]
    assert any(cores.home for cores in sets) is (tree.count(Level.NODE) > 1)


def test_all_pairs_are_measured_of_few_cores() -> None:
    assert line_pairs([5, 1, 3]) == [(1, 3), (1, 5), (3, 5)]
    assert len(line_pairs(range(ALL_PAIRS))) == ALL_PAIRS * (ALL_PAIRS - 1) / 2
    assert all(a < b for a, b in line_pairs(range(100)))
