"""Tasks cover every role once, and plans take tuned tiles where there are any."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codegen.layout.model import ModelLayout
from codegen.spec import GemmTile, ModelShape, Phase, WeightFormat
from platforms.isa import isa_row
from platforms.machines import load_machine
from schedules.plan import PlanPair
from schedules.records import CpuKind, RecordBook, TuningRecord, current_generator
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.tiles.tuned_plans import (
    key_of,
    phase_of,
    render_origins,
    tasks_of,
    tile_at,
    tuned_plans,
    untuned,
)

ISA = isa_row("avx512_bf16")
MACHINE = load_machine("epyc-guest")
SHAPE = ModelShape(
    num_layers=2,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=32000,
    rms_norm_eps=1e-5,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    tied_embeddings=False,
    max_model_len=2048,
)
LAYOUT = ModelLayout.build(SHAPE, "bfloat16", ISA.lanes, panel_width(ISA))
PLANS = default_plans(ISA, (0, 1), SHAPE)
TILE = GemmTile(4, 512, 4, 0, 2)


def record_of(role: str, phase: Phase, rows: int, tile: GemmTile = TILE) -> TuningRecord:
    return TuningRecord(
        machine=MACHINE.fingerprint,
        cpu=CpuKind.of(MACHINE),
        key=key_of(PLANS.of(phase), LAYOUT.panels(role), rows),
        tile=tile,
        gflops=1.0,
        gbps=1.0,
        limit_ratio=1.0,
        speedup=1.2,
        generator=current_generator(),
    )


def tuned(*records: TuningRecord) -> PlanPair:
    return tuned_plans(PLANS, LAYOUT, RecordBook(MACHINE, records))[0]


def test_every_role_is_tuned_once_for_every_range_of_both_phases() -> None:
    tasks = tasks_of(PLANS, LAYOUT, l2_bytes=1 << 20)
    entries = [(role, key.rows) for task in tasks for role, key in task.roles]
    few, many = [1, 4, 8, 32], [128, 512]
    wanted = {(role, rows) for role in LAYOUT.matrices for rows in few}
    wanted |= {(role, rows) for role in LAYOUT.matrices if role != "lm_head" for rows in many}
    assert len(entries) == len(set(entries))
    assert set(entries) == wanted


def test_roles_of_one_slice_are_one_task_with_their_weights_together() -> None:
    tasks = [task for task in tasks_of(PLANS, LAYOUT, 1 << 20) if task.rows == 1]
    roles = {tuple(role for role, _ in task.roles): task for task in tasks}
    assert set(roles) == {("qkv", "o", "gate_up", "lm_head"), ("down",)}
    assert sum(task.weight for task in tasks) == pytest.approx(1.0)
    assert roles["qkv", "o", "gate_up", "lm_head"].space.in_halves
    assert not roles["down",].space.in_halves


def test_halves_are_a_task_of_their_own_where_the_default_is_odd() -> None:
    weights = WeightFormat("int8", group=32)
    layout = ModelLayout.build(SHAPE, "bfloat16", ISA.lanes, panel_width(ISA), weights)
    plans = default_plans(ISA, (0, 1), SHAPE, weights)
    roles = {
        tuple(role for role, _ in task.roles): task.start
        for task in tasks_of(plans, layout, 1 << 20, (Phase.DECODE,))
        if task.rows == 8
    }
    assert roles["qkv", "o"].nv == 1
    assert roles["gate_up",].nv == 2
    ranges, _ = tuned_plans(plans, layout, RecordBook(MACHINE, []))
    assert tile_at(dict(ranges.decode.tiles)["gate_up"], 8) == roles["gate_up",]


def test_phases_and_roles_can_be_chosen() -> None:
    tasks = tasks_of(PLANS, LAYOUT, 1 << 20, (Phase.PREFILL,), ("down",))
    assert [task.rows for task in tasks] == [128, 512]
    assert {phase_of(task.rows) for task in tasks} == {Phase.PREFILL}


def test_a_slice_has_whole_panels_for_every_core() -> None:
    for task in tasks_of(PLANS, LAYOUT, 1 << 20):
        layout = task.space.layout
        assert layout.n % (layout.panel * len(task.cpus)) == 0


def test_without_records_plans_stay_as_they_are() -> None:
    plans, origins = tuned_plans(PLANS, LAYOUT, RecordBook(MACHINE, []))
    assert plans == PLANS
    assert render_origins(origins, Phase.DECODE) == f"default ({', '.join(LAYOUT.matrices)})"


def test_a_record_changes_its_range_alone() -> None:
    plans = tuned(record_of("down", Phase.DECODE, 4))
    ranges = dict(plans.decode.tiles)["down"]
    default = dict(PLANS.decode.tiles)["down"]
    assert ranges == ((1, default[0][1]), (4, TILE), *default)
    assert [tile_at(ranges, rows) == TILE for rows in (1, 2, 4, 5)] == [False, True, True, False]
    others = replace(plans.decode, tiles=PLANS.decode.tiles)
    assert replace(plans, decode=others) == PLANS


def test_both_phases_multiply_few_logits_with_one_tile() -> None:
    plans = tuned(record_of("lm_head", Phase.DECODE, 1))
    for plan in (plans.prefill, plans.decode):
        assert tile_at(dict(plan.tiles)["lm_head"], 1) == replace(TILE, mr=1)


def test_a_record_answers_for_matrices_of_the_same_depth_too() -> None:
    plans = tuned(record_of("o", Phase.DECODE, 4))
    changed = {role for role, ranges in plans.decode.tiles if tile_at(ranges, 4) == TILE}
    assert changed == {"qkv", "o", "gate_up", "lm_head"}


def test_ranges_with_the_same_tile_are_joined() -> None:
    plans = tuned(record_of("o", Phase.DECODE, 4), record_of("o", Phase.DECODE, 8))
    larger = [rows for rows, _ in dict(PLANS.decode.tiles)["o"] if rows > 8]
    assert [rows for rows, _ in dict(plans.decode.tiles)["o"]] == [1, 8, *larger]


def test_a_record_of_the_default_needs_no_range_of_its_own() -> None:
    start = replace(dict(PLANS.decode.tiles)["down"][0][1], mr=4)
    book = RecordBook(MACHINE, [record_of("down", Phase.DECODE, 4, start)])
    plans, origins = tuned_plans(PLANS, LAYOUT, book)
    assert plans == PLANS
    text = render_origins(origins, Phase.DECODE)
    assert text == "default (qkv, o, gate_up, lm_head); default and tuned on this machine (down)"


def test_a_tile_that_does_not_fit_the_registers_is_not_taken() -> None:
    assert tuned(record_of("o", Phase.PREFILL, 512, GemmTile(20, nv=2))) == PLANS


def test_an_odd_tile_is_not_taken_for_a_matrix_in_halves() -> None:
    odd = GemmTile(4, nv=1)
    tiles = dict(tuned(record_of("gate_up", Phase.PREFILL, 512, odd)).prefill.tiles)
    assert tiles["gate_up"] == dict(PLANS.prefill.tiles)["gate_up"]
    assert tile_at(tiles["qkv"], 512) == odd


def test_untuned_takes_tiles_back() -> None:
    assert untuned(tuned(record_of("o", Phase.DECODE, 4)), LAYOUT) == PLANS
