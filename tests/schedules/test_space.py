"""The space has only tiles that fit, and its prior knows a good register tile from a bad one."""

from dataclasses import fields, replace

import pytest

from codegen.panels import PanelLayout
from codegen.spec import GemmTile, WeightFormat
from platforms.isa import IsaRow, isa_row
from schedules.plan import default_plans, panel_width
from schedules.space import TileSpace

FORMATS = [
    WeightFormat("float32"),
    WeightFormat("bfloat16"),
    WeightFormat("int8", "int8"),
    WeightFormat("int4", "int8", 32, "float16"),
]
L2_BYTES = 1 << 20


def space_of(
    isa: str = "avx512_bf16",
    weights: WeightFormat = FORMATS[1],
    rows: int = 32,
    k: int = 2048,
    in_halves: bool = False,
) -> TileSpace:
    row: IsaRow = isa_row(isa)
    layout = PanelLayout(4096, k, weights, panel_width(row), row.lanes)
    return TileSpace(row, layout, rows, L2_BYTES, in_halves)


@pytest.mark.parametrize("rows", [1, 8, 32, 512])
@pytest.mark.parametrize("weights", FORMATS, ids=lambda w: w.name)
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512_bf16", "neon"])
def test_every_tile_fits_the_registers_and_the_rows(
    isa: str, weights: WeightFormat, rows: int
) -> None:
    space = space_of(isa, weights, rows)
    kernels = space.micro_kernels()
    assert kernels
    for tile in {*kernels, *(move for kernel in kernels[:5] for move in space.moves(kernel))}:
        assert space.registers(tile) <= space.isa.num_vector_registers
        assert 1 <= tile.mr <= rows
        assert tile.kc < space.layout.k
        assert tile.nv < space.num_vectors


def test_the_default_tile_of_every_isa_is_legal_with_weights_that_are_multiplied_as_they_are() -> (
    None
):
    for isa in ("avx2", "avx512", "avx512_bf16", "neon"):
        for phase_rows in (1, 32, 512):
            space = space_of(isa, FORMATS[0], phase_rows)
            plans = default_plans(isa_row(isa), [0], 1)
            for plan in (plans.prefill, plans.decode):
                assert space.is_legal(space.start(plan.tiles[0][1][-1][1]))


def test_many_rows_want_a_tile_that_fills_the_registers() -> None:
    space = space_of(rows=512)
    best = space.micro_kernels()[0]
    assert best.mr * space.width(best) >= 20
    assert space.cost(best) < space.cost(GemmTile(1, nv=1)) / 3


def test_matrices_in_halves_have_even_tiles() -> None:
    space = space_of(in_halves=True)
    assert {space.width(tile) for tile in space.micro_kernels()} == {2, 4}


def test_a_k_block_that_is_used_again_stays_in_the_cache() -> None:
    space = space_of(rows=512, k=16384)
    assert not space.is_legal(GemmTile(6))
    assert space.is_legal(GemmTile(6, kc=4096))
    assert space_of(rows=4, k=16384).is_legal(GemmTile(4))


def test_groups_hold_whole_turns_of_the_k_loop() -> None:
    space = space_of(weights=FORMATS[3])
    assert space.is_legal(GemmTile(4, k_unroll=4, nv=2))
    assert not space.is_legal(GemmTile(4, k_unroll=8, nv=2))


def test_moves_change_one_field_and_never_stay() -> None:
    tile = GemmTile(8, 1024, 4, 2048, 2)
    moves = space_of().moves(tile)
    for move in moves:
        names = [field.name for field in fields(tile)]
        assert sum(getattr(move, name) != getattr(tile, name) for name in names) == 1
    changed = {move.mr for move in moves}, {move.kc for move in moves}
    assert changed == ({7, 8, 9}, {0, 512, 1024})


def test_the_next_k_block_is_prefetched_only_where_there_is_one_and_both_fit() -> None:
    space = space_of(rows=8)
    assert space.is_legal(GemmTile(4, 1024, block_prefetch=2))
    assert not space.is_legal(GemmTile(4, 0, block_prefetch=2))
    assert space.start(GemmTile(4, 2048, block_prefetch=2)) == GemmTile(4)
    deep = space_of(rows=8, k=8192)
    assert deep.is_legal(GemmTile(4, 4096))
    assert not deep.is_legal(GemmTile(4, 4096, block_prefetch=2))


def test_only_quantised_weights_that_meet_floats_are_widened() -> None:
    tile = GemmTile(4, is_widened=True)
    widening = space_of(weights=WeightFormat("int8"))
    assert widening.is_legal(tile)
    assert tile in widening.moves(GemmTile(4))
    assert not any(space_of(weights=weights).is_legal(tile) for weights in FORMATS)


@pytest.mark.parametrize(("num_cores", "parts"), [(2, {1}), (48, {1, 2}), (1, {1})])
def test_rows_are_parted_only_where_panels_cannot_be_shared_evenly(
    num_cores: int, parts: set[int]
) -> None:
    space = replace(space_of(rows=512), num_cores=num_cores)
    moves = space.moves(GemmTile(6))
    assert {move.row_parts for move in moves} == parts
    assert not space.is_legal(GemmTile(6, row_parts=5))
    assert not replace(space, rows=8).is_legal(GemmTile(6, row_parts=2))


def test_start_cuts_a_tile_to_the_problem() -> None:
    assert space_of(rows=4, k=1024).start(GemmTile(6, 2048, 8, 0, 4)) == GemmTile(4, 0, 8, 0, 0)
