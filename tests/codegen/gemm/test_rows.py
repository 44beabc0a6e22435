"""Which numbers of rows a tile is for: every number has one tile, and code for its remainder."""

from __future__ import annotations

import pytest

from codegen.gemm.nest import column_runs, column_tiles
from codegen.gemm.rows import RowNumbers, rows_of_tiles
from codegen.spec import GemmTile, TileRanges

A, B, C = GemmTile(mr=6), GemmTile(mr=4), GemmTile(mr=8)
RANGES: dict[str, TileRanges] = {
    "one": ((3, A),),
    "each-its-own": ((4, A), (8, B), (20, C)),
    "one-that-comes-back": ((4, A), (8, B), (20, A)),
    "neighbours-that-are-equal": ((4, A), (8, A), (9, B)),
}


def tile_of(ranges: TileRanges, num_rows: int) -> GemmTile:
    """The first that reaches the number, else the last."""
    return next((tile for bound, tile in ranges if num_rows <= bound), ranges[-1][1])


@pytest.mark.parametrize("numbers", [range(1, 2), range(1, 9), range(1, 41), range(7, 8)], ids=str)
@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
def test_every_number_of_rows_has_the_tile_of_its_range(ranges: TileRanges, numbers: range) -> None:
    found = rows_of_tiles(ranges, numbers)
    tiles = {number: tile for tile, its in found.items() for span in its.spans for number in span}
    assert tiles == {number: tile_of(ranges, number) for number in numbers}
    for tile, its in found.items():
        mine = [number for number in numbers if tiles[number] == tile]
        assert its.tails(tile.mr) == sorted({number % tile.mr for number in mine} - {0})
        assert its.reach(tile.mr) == any(number >= tile.mr for number in mine)


def test_neighbouring_ranges_of_one_tile_are_one_span() -> None:
    found = rows_of_tiles(RANGES["neighbours-that-are-equal"], range(1, 21))
    assert found[A] == RowNumbers((range(1, 9),), 20)


@pytest.mark.parametrize(
    ("num_vectors", "nv", "in_halves", "runs"),
    [
        (4, 0, False, [((0, 1, 2, 3), 0, 1)]),
        (4, 1, False, [((0,), 1, 4)]),
        (4, 2, False, [((0, 1), 2, 2)]),
        (4, 3, False, [((0, 1, 2), 0, 1), ((3,), 0, 1)]),
        (5, 2, False, [((0, 1), 2, 2), ((4,), 0, 1)]),
        (4, 2, True, [((0, 2), 1, 2)]),
        (8, 4, True, [((0, 1, 4, 5), 2, 2)]),
    ],
)
def test_equal_tiles_side_by_side_are_one_loop(
    num_vectors: int, nv: int, in_halves: bool, runs: list[tuple[tuple[int, ...], int, int]]
) -> None:
    assert column_runs(column_tiles(num_vectors, nv, in_halves)) == runs
