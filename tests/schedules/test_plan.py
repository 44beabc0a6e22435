"""Plans: values that survive JSON, refuse nonsense by name, and are complete for every ISA."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.spec import GEMM_ROLES, GemmTile, Phase
from platforms.isa import ISA_TABLE, IsaRow
from schedules.plan import Plan, PlanError, PlanPair, default_plans, panel_width

TILES = tuple((role, GemmTile(mr=2)) for role in GEMM_ROLES)
PLAN = Plan(Phase.PREFILL, "avx2", (0, 2), TILES, query_tile=4)

gemm_tiles = st.builds(
    GemmTile,
    mr=st.integers(1, 14),
    kc=st.integers(0, 1 << 14),
    k_unroll=st.integers(1, 16),
    prefetch_bytes=st.integers(0, 1 << 14),
)
plans = st.builds(
    Plan,
    phase=st.sampled_from(Phase),
    isa=st.sampled_from([row.name for row in ISA_TABLE]),
    cpus=st.lists(st.integers(0, 1023), min_size=1, unique=True).map(tuple),
    tiles=st.tuples(*(st.tuples(st.just(role), gemm_tiles) for role in GEMM_ROLES)),
    query_tile=st.integers(1, 64),
)


@given(plans)
def test_a_plan_survives_json(plan: Plan) -> None:
    text = json.dumps(plan.to_json())
    back = Plan.from_json(json.loads(text))
    assert back == plan
    assert hash(back) == hash(plan)
    assert json.dumps(back.to_json()) == text


@given(plans, plans)
def test_plans_are_rendered_apart(one: Plan, other: Plan) -> None:
    assert (one.render() == other.render()) == (replace(one, isa=other.isa) == other)


@given(plans)
def test_a_plan_is_rendered_in_one_line(plan: Plan) -> None:
    assert "\n" not in plan.render()
    assert plan.render().startswith(plan.phase.value)


@pytest.mark.parametrize(("cpus", "named"), [((), r"cpus is \[\]"), ((3, 1, 3), r"\[3, 1, 3\]")])
def test_a_plan_needs_different_cpus(cpus: tuple[int, ...], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        replace(PLAN, cpus=cpus)


@pytest.mark.parametrize("tiles", [(), TILES[:-1], TILES[::-1], (*TILES, TILES[0])])
def test_a_plan_has_one_tile_for_each_role(tiles: tuple[tuple[str, GemmTile], ...]) -> None:
    with pytest.raises(PlanError, match=r"a plan has one each for .*'qkv'.*'lm_head'"):
        replace(PLAN, tiles=tiles)


def broken(**changes: Any) -> dict[str, Any]:
    return PLAN.to_json() | changes


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PLAN.to_json().items() if key != name}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "'phase'"),
        *((without(name), f"'{name}'") for name in PLAN.to_json()),
        (broken(phase="warmup"), "'warmup' is not a valid Phase"),
        (broken(cpus=5), "'int' object is not iterable"),
        (broken(cpus=[0, 0]), r"cpus is \[0, 0\]"),
        (broken(tiles=[]), "'list' object has no attribute 'items'"),
        (broken(tiles={"qkv": {"mr": 2}}), r"tiles are for \['qkv'\]"),
        (broken(tiles={"qkv": {"rows": 2}}), "'rows'"),
        (broken(tiles={"qkv": {}}), "'mr'"),
    ],
)
def test_json_that_is_no_plan_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        Plan.from_json(fields)


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 7, 16, 64])
@pytest.mark.parametrize("isa", ISA_TABLE, ids=lambda row: row.name)
def test_the_default_plans_of_every_isa_are_complete(isa: IsaRow, group_size: int) -> None:
    pair = default_plans(isa, (4, 5, 6), group_size)
    for phase in Phase:
        plan = pair.of(phase)
        assert (plan.phase, plan.isa, plan.cpus) == (phase, isa.name, (4, 5, 6))
        assert tuple(role for role, _ in plan.tiles) == GEMM_ROLES
        assert plan.query_tile >= 1
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        # the sums of a tile and one vector of weights fit in the registers
        vectors = pair.panel // isa.lanes
        assert all(t.mr * vectors + 1 <= isa.num_vector_registers for _, t in plan.tiles)
    assert pair.decode.query_tile == 1  # a sequence has one token
    assert pair.panel % (2 * isa.lanes) == 0  # gate and up share a panel in halves


def test_a_pair_of_plans_is_rendered_as_json_whole() -> None:
    pair = PlanPair(32, PLAN, replace(PLAN, phase=Phase.DECODE))
    fields = json.loads(json.dumps(pair.to_json()))
    assert fields["panel"] == 32
    assert [Plan.from_json(fields[phase.value]) for phase in Phase] == [pair.of(p) for p in Phase]


def test_a_panel_is_four_vectors_where_there_are_registers_for_it() -> None:
    assert {row.name: panel_width(row) // row.lanes for row in ISA_TABLE} == {
        "generic": 2,
        "avx2": 2,
        "avx512": 4,
        "avx512_bf16": 4,
        "neon": 4,
    }
