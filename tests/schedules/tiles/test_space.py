"""The space has only tiles that fit, and its prior knows a good register tile from a bad one."""

from dataclasses import fields, replace
from itertools import product

import pytest

from codegen.layout.panels import PanelLayout
from codegen.spec import LOOP_ORDERS, GemmTile, Phase, WeightFormat
from platforms.isa import ISA_TABLE, IsaRow, isa_row
from sandwich.models.presets import preset
from schedules.tiles.default_plans import default_plans, panel_width
from schedules.tiles.defaults import default_tiles
from schedules.tiles.space import BLOCK_PREFETCHES, K_UNROLLS, PREFETCHES, TileSpace
from schedules.tiles.tuned_plans import tile_at
from schedules.tiles.tuner import NUM_KERNELS

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
            model = preset("tiny").shape(64)
            plans = default_plans(isa_row(isa), [0], model, FORMATS[0])
            for plan in (plans.prefill, plans.decode):
                assert space.is_legal(space.start(tile_at(plan.tiles[0][1], phase_rows)))


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
    assert all(len(changes(tile, move)) == 1 for move in moves)
    assert len(set(moves)) == len(moves)
    changed = {move.mr for move in moves}, {move.kc for move in moves}
    assert changed == ({7, 8, 9}, {0, 512, 1024})


def changes(tile: GemmTile, move: GemmTile) -> set[str]:
    """The fields in which `move` differs."""
    names = [field.name for field in fields(tile)]
    return {name for name in names if getattr(move, name) != getattr(tile, name)}


def reached(space: TileSpace, start: GemmTile, steps: int = 6) -> set[GemmTile]:
    """All tiles that so many moves lead to, where MR and NV stay."""
    found = {start}
    for _ in range(steps):
        near = (move for tile in found for move in space.moves(tile))
        found |= {move for move in near if changes(start, move).isdisjoint({"mr", "nv"})}
    return found


def test_the_prefetch_of_k_blocks_comes_and_goes_with_the_blocks() -> None:
    space = space_of(rows=8)
    whole, cut = GemmTile(4), GemmTile(4, 1024, block_prefetch=2)
    assert cut in space.moves(whole)
    assert {move.block_prefetch for move in space.moves(cut)} == {0, 1, 2, 3, 4}
    far = replace(space, layout=replace(space.layout, k=512))
    assert not any(move.block_prefetch for move in far.moves(whole))
    assert all(move.block_prefetch == 0 for move in space_of(rows=512).moves(GemmTile(6)))


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
    assert not replace(widening, rows=4).is_legal(tile)  # there is nothing to do once


def test_the_fast_start_has_tiles_of_both_ways_to_widen() -> None:
    kernels = space_of(weights=WeightFormat("int8"), rows=8).micro_kernels()[:NUM_KERNELS]
    assert {kernel.is_widened for kernel in kernels} == {False, True}


def test_the_order_of_the_tiles_is_tried_where_a_does_not_stay_in_the_cache() -> None:
    tile = GemmTile(6, 1024)
    assert {move.order for move in space_of(rows=512).moves(tile)} == set(LOOP_ORDERS)
    for rows, k in ((128, 8192), (200, 1024)):  # one block of rows; 400 KiB of A
        assert {move.order for move in space_of(rows=rows, k=k).moves(tile)} == {"panels"}
    for held in (replace(tile, block_prefetch=1), GemmTile(6, 1024, is_widened=True)):
        assert not space_of(rows=512).is_legal(replace(held, order="curve"))


@pytest.mark.parametrize(
    ("weights", "tile", "chains"),
    [
        (FORMATS[2], GemmTile(1, 0, 4, nv=1), {1, 2}),
        (FORMATS[2], GemmTile(1, 0, 4, nv=1, chains=2), {1, 2, 4}),
        (FORMATS[2], GemmTile(1, 0, 4), {1, 2}),
        (FORMATS[2], GemmTile(1, 0, 1), {1}),  # one product in a turn
        (FORMATS[2], GemmTile(2, 0, 4), {1}),  # sums enough
        (FORMATS[3], GemmTile(1, 0, 1), {1, 2}),  # eight products in a group
        (FORMATS[1], GemmTile(1, 0, 4, nv=1), {1}),  # additions of floats have one order
    ],
)
def test_chains_are_tried_where_few_integer_sums_wait(
    weights: WeightFormat, tile: GemmTile, chains: set[int]
) -> None:
    assert {move.chains for move in space_of(weights=weights).moves(tile)} == chains


def test_moves_reach_every_value_of_every_dimension() -> None:
    """K is short and the rows are few, so that few moves go far."""
    deep = reached(space_of(rows=8, k=2048), GemmTile(4, k_unroll=4), steps=3)
    assert {tile.block_prefetch for tile in deep} == set(BLOCK_PREFETCHES)
    assert {tile.k_unroll for tile in deep} == set(K_UNROLLS)
    assert {tile.prefetch_bytes for tile in deep} == set(PREFETCHES)
    assert {tile.kc for tile in deep} == {0, 512, 1024}
    widened = reached(space_of(weights=WeightFormat("int8"), rows=200), GemmTile(4), steps=1)
    assert {tile.is_widened for tile in widened} == {False, True}


@pytest.mark.parametrize(("num_cores", "parts"), [(2, {1}), (48, {1, 2}), (1, {1})])
def test_rows_are_parted_only_where_panels_cannot_be_shared_evenly(
    num_cores: int, parts: set[int]
) -> None:
    space = replace(space_of(rows=512), num_cores=num_cores)
    moves = space.moves(GemmTile(6))
    assert {move.row_parts for move in moves} == parts
    assert not space.is_legal(GemmTile(6, row_parts=5))
    assert not replace(space, rows=8).is_legal(GemmTile(6, row_parts=2))


def test_a_default_that_spills_is_searched_around_too() -> None:
    space, tile = space_of(weights=FORMATS[3], rows=4), GemmTile(4, k_unroll=4)
    assert not space.is_legal(tile)
    moves = space.moves(tile)
    assert {"mr", "kc", "k_unroll", "prefetch_bytes"} <= set().union(
        *(changes(tile, move) for move in moves)
    )
    assert all(space.registers(move) <= space.registers(tile) for move in moves)


@pytest.mark.parametrize("isa", [row.name for row in ISA_TABLE])
@pytest.mark.parametrize("weights", FORMATS, ids=lambda w: w.name)
def test_every_default_tile_has_moves(isa: str, weights: WeightFormat) -> None:
    for rows, phase in product((1, 4, 8, 32, 512), Phase):
        space = space_of(isa, weights, rows)
        assert space.moves(space.start(tile_at(default_tiles(isa_row(isa), phase, weights), rows)))


@pytest.mark.parametrize(
    ("weights", "tile", "pairs"),
    [
        (WeightFormat("int8"), GemmTile(8, nv=1), GemmTile(8, nv=2)),
        (WeightFormat("int8", group=32), GemmTile(8, nv=1), GemmTile(6, nv=2)),  # twice the sums
        (WeightFormat("int8", group=32), GemmTile(8, nv=2), GemmTile(8, nv=2)),
    ],
)
def test_an_odd_tile_becomes_an_even_one_in_halves(
    weights: WeightFormat, tile: GemmTile, pairs: GemmTile
) -> None:
    assert space_of(weights=weights, in_halves=True).in_pairs(tile) == pairs
    assert space_of(weights=weights).in_pairs(tile) == tile


def test_start_cuts_a_tile_to_the_problem() -> None:
    assert space_of(rows=4, k=1024).start(GemmTile(6, 2048, 8, 0, 4)) == GemmTile(4, 0, 8, 0, 0)


@pytest.mark.parametrize(
    ("k", "tile", "cut"),
    [
        (576, GemmTile(8, 1024, block_prefetch=1), GemmTile(8, 512, block_prefetch=1)),
        (1024, GemmTile(8, 1024, block_prefetch=1), GemmTile(8, 512, block_prefetch=1)),
        (1025, GemmTile(8, 1024, block_prefetch=1), GemmTile(8, 1024, block_prefetch=1)),
        (576, GemmTile(8, 1024), GemmTile(8, 1024)),  # it fetches nothing
        (512, GemmTile(8, 1024, block_prefetch=1), GemmTile(8, 1024, block_prefetch=1)),
    ],
)
def test_a_tile_that_fetches_the_next_block_cuts_k_where_there_is_none(
    k: int, tile: GemmTile, cut: GemmTile
) -> None:
    assert space_of(k=k).in_blocks(tile) == cut
