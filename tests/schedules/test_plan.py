"""Plans: values that survive JSON, refuse nonsense by name, and are complete for every ISA."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.model.tables import matrices
from codegen.spec import LOOP_ORDERS, GemmTile, Phase, TileRanges, WeightFormat
from platforms.isa import ISA_TABLE, IsaRow
from sandwich.models.presets import preset
from schedules.plan import Plan, PlanError, PlanPair
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.tiles.defaults import MANY_ROWS, default_tiles

MODEL = preset("tiny").shape(64)
ROLES = tuple(matrix.role for matrix in matrices(MODEL))
TILES = tuple((role, ((1, GemmTile(mr=2)),)) for role in ROLES)
PLAN = Plan(Phase.PREFILL, "avx2", (0, 2), TILES, query_tile=4)

gemm_tiles = st.builds(
    GemmTile,
    mr=st.integers(1, 14),
    kc=st.integers(0, 1 << 14),
    k_unroll=st.integers(1, 16),
    prefetch_bytes=st.integers(0, 1 << 14),
    nv=st.integers(0, 4),
    is_widened=st.booleans(),
    block_prefetch=st.integers(0, 4),
    row_parts=st.integers(1, 8),
    order=st.sampled_from(LOOP_ORDERS),
    chains=st.integers(1, 4),
)
tile_ranges = st.dictionaries(st.integers(1, 1 << 16), gemm_tiles, min_size=1, max_size=3).map(
    lambda by_rows: tuple(sorted(by_rows.items()))
)
plans = st.builds(
    Plan,
    phase=st.sampled_from(Phase),
    isa=st.sampled_from([row.name for row in ISA_TABLE]),
    cpus=st.lists(st.integers(0, 1023), min_size=1, unique=True).map(tuple),
    tiles=st.tuples(*(st.tuples(st.just(role), tile_ranges) for role in ROLES)),
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


def test_groups_survive_json_and_are_those_of_the_cpus() -> None:
    plan = PLAN.on((0, 1, 8, 9, 64), groups=((2, 2), (1,)))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.core_groups == ((2, 2), (1,))
    assert plan.on((0, 1)).core_groups == ((2,),)
    with pytest.raises(PlanError, match="not those of 5 cpus"):
        plan.on((0, 1, 8, 9, 64), groups=((2, 2),))


@given(plans)
def test_a_plan_is_rendered_in_one_line(plan: Plan) -> None:
    assert "\n" not in plan.render()
    assert plan.render().startswith(plan.phase.value)


@pytest.mark.parametrize(("cpus", "named"), [((), r"cpus is \[\]"), ((3, 1, 3), r"\[3, 1, 3\]")])
def test_a_plan_needs_different_cpus(cpus: tuple[int, ...], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        replace(PLAN, cpus=cpus)


@pytest.mark.parametrize("tiles", [(), (*TILES, TILES[0])])
def test_a_plan_has_tiles_for_each_role(tiles: tuple[tuple[str, TileRanges], ...]) -> None:
    with pytest.raises(PlanError, match="a plan has one each for all matrices"):
        replace(PLAN, tiles=tiles)


@pytest.mark.parametrize(("bounds", "named"), [((), r"\[\]"), ((3, 2), "3, 2"), ((0,), r"\[0\]")])
def test_ranges_of_rows_ascend(bounds: tuple[int, ...], named: str) -> None:
    tiles = tuple((role, tuple((n, GemmTile(mr=2)) for n in bounds)) for role in ROLES)
    with pytest.raises(PlanError, match=f"qkv: tiles end at rows .*{named}"):
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
        (broken(tiles={}), r"tiles are for \[\]"),
        (broken(tiles={"qkv": [{"max_rows": 1, "mr": 2, "rows": 2}]}), "'rows'"),
        (broken(tiles={"qkv": [{"max_rows": 1}]}), "'mr'"),
        (broken(tiles={"qkv": [{"mr": 2}]}), "'max_rows'"),
        (broken(tiles={"qkv": [{"max_rows": "2", "mr": 2}]}), "max_rows is '2'"),
        (broken(tiles={"qkv": [{"max_rows": 1, "mr": 0}]}), "mr is 0"),
        (broken(tiles={"qkv": [{"max_rows": 1, "mr": 2, "kc": 1.5}]}), "kc is 1.5"),
        (broken(tiles={"qkv": [{"max_rows": 1, "mr": 2, "nv": -1}]}), "nv is -1"),
        (broken(tiles={"qkv": [{"max_rows": 1, "mr": 2, "is_widened": 1}]}), "is_widened is 1"),
        (broken(query_tile=0), "query_tile is 0"),
        (broken(query_tile="4"), "query_tile is '4'"),
    ],
)
def test_json_that_is_no_plan_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanError, match=named):
        Plan.from_json(fields)


@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 7, 16, 64])
@pytest.mark.parametrize("isa", ISA_TABLE, ids=lambda row: row.name)
def test_the_default_plans_of_every_isa_are_complete(isa: IsaRow, group_size: int) -> None:
    pair = default_plans(isa, (4, 5, 6), replace(MODEL, num_heads=group_size, num_kv_heads=1))
    for phase in Phase:
        plan = pair.of(phase)
        assert (plan.phase, plan.isa, plan.cpus) == (phase, isa.name, (4, 5, 6))
        assert tuple(role for role, _ in plan.tiles) == ROLES
        assert plan.query_tile >= 1
        assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        # the sums of a tile and one vector of weights fit in the registers
        vectors = pair.panel // isa.lanes
        for _, ranges in plan.tiles:
            for _, tile in ranges:
                assert tile.mr * (tile.nv or vectors) + 1 <= isa.num_vector_registers
    assert pair.decode.query_tile == 1  # a sequence has one token
    assert pair.panel % (2 * isa.lanes) == 0  # gate and up share a panel in halves


FORMATS = [
    WeightFormat("bfloat16"),
    WeightFormat("int8"),
    WeightFormat("int8", activations="int8"),
    WeightFormat("int4", activations="int8", group=32),
    WeightFormat("int4", group=64),
]


@pytest.mark.parametrize("weights", FORMATS, ids=lambda weights: weights.name)
@pytest.mark.parametrize("isa", ISA_TABLE, ids=lambda row: row.name)
def test_the_sums_of_every_default_tile_fit_the_registers(
    isa: IsaRow, weights: WeightFormat
) -> None:
    pair = default_plans(isa, (0, 1), MODEL, weights, lm_head=FORMATS[0])
    for phase in Phase:
        by_role = dict(pair.of(phase).tiles)
        assert by_role["down"] == default_tiles(isa, phase, weights)
        assert by_role["lm_head"] == default_tiles(isa, phase, FORMATS[0])
        sets = 2 if weights.group else 1
        assert by_role["down"][-1][0] == MANY_ROWS
        for rows, tile in by_role["down"]:
            sums = sets * min(rows, tile.mr) * (tile.nv or pair.panel // isa.lanes)
            assert sums <= isa.num_vector_registers


def test_a_pair_of_plans_is_rendered_as_json_whole() -> None:
    pair = PlanPair(32, PLAN, replace(PLAN, phase=Phase.DECODE))
    fields = json.loads(json.dumps(pair.to_json()))
    assert fields["panel"] == 32
    assert [Plan.from_json(fields[phase.value]) for phase in Phase] == [pair.of(p) for p in Phase]


def test_a_panel_is_four_vectors_where_a_tile_of_them_fits_the_registers_else_eight() -> None:
    vectors = {row.name: panel_width(row) // row.lanes for row in ISA_TABLE}
    assert {name: vectors[name] for name in ("generic", "avx2", "avx512", "neon")} == {
        "generic": 8,
        "avx2": 8,
        "avx512": 4,
        "neon": 4,
    }
