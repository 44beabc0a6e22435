"""A walk goes through every cell of a share once, and the curve from neighbour to neighbour."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from codegen.compile import lower, tensor
from codegen.functions import ir_module
from codegen.gemm.walk import Share, curve, walk
from codegen.kit import Expr, T
from codegen.spec import LOOP_ORDERS
from platforms.isa import isa_row
from platforms.memory import Arena

MOST_VISITS = 1024
HEIGHT = 4  # rows of a block


@dataclass(frozen=True)
class Diary:
    """Writes down every call of `visit`."""

    visits: Expr  # (MOST_VISITS, values of a call)
    count: Expr

    def visit(self, *values: Expr) -> None:
        at = T.bind(self.count[0])
        for i, value in enumerate(values):
            T.buffer_store(self.visits, value, [at, i])
        T.buffer_store(self.count, at + 1, [0])


def compiled(name: str, num_sizes: int, num_values: int, body: Callable[..., None]) -> Any:
    """Calls of `visit`, (visits, num_values), as a function of sizes that `body` is given."""

    def build() -> None:
        sizes = [T.arg(f"size{i}", T.int32()) for i in range(num_sizes)]
        handles = [T.arg(buffer, T.handle()) for buffer in ("visits", "count")]
        visits = T.match_buffer(handles[0], [MOST_VISITS, num_values], "int32")
        body(Diary(visits, T.match_buffer(handles[1], [1], "int32")).visit, *sizes)

    function = lower(ir_module(name, build), isa_row("generic"))[name]
    arena = Arena(MOST_VISITS * num_values * 4 + 128, name)
    visits = arena.array((MOST_VISITS, num_values), np.int32)
    count = arena.array((1,), np.int32)

    def run(*sizes: int) -> np.ndarray:
        count[0] = 0
        function(*sizes, tensor(visits), tensor(count))
        return visits[: count[0]].copy()

    return run


@cache
def points() -> Any:
    return compiled("points", 2, 2, lambda visit, width, height: curve(width, height, visit))


@pytest.mark.parametrize("width", [0, 1, 2, 5, 8, 9, 31])
@pytest.mark.parametrize("height", [0, 1, 3, 4, 17])
def test_the_curve_fills_any_rectangle_once(width: int, height: int) -> None:
    cells = [tuple(cell) for cell in points()(width, height)]
    assert sorted(cells) == [(x, y) for x in range(width) for y in range(height)]


@pytest.mark.parametrize(("width", "height"), [(4, 4), (16, 16), (24, 8), (4, 12)])
def test_the_curve_steps_to_a_neighbour_in_squares_of_a_power_of_two(
    width: int, height: int
) -> None:
    steps = np.abs(np.diff(points()(width, height), axis=0)).sum(axis=1)
    assert (steps == 1).all()


def test_a_quarter_of_the_curve_is_a_square() -> None:
    first = points()(16, 16)[:64]
    assert first.max(axis=0).tolist() == [7, 7]


@pytest.mark.parametrize("order", LOOP_ORDERS)
def test_every_row_of_every_panel_is_visited_once(order: str) -> None:
    run = compiled(
        f"walk_{order}",
        4,
        3,
        lambda visit, begin, end, first, num_rows: walk(
            order, Share(begin, end, first, num_rows), HEIGHT, visit
        ),
    )
    for begin, end, first, num_rows in [(0, 1, 0, 1), (2, 7, 8, 13), (1, 3, 0, 16), (3, 3, 0, 9)]:
        times = np.zeros((8, 32), int)
        for panel, row, count in run(begin, end, first, num_rows):
            times[panel, row : row + count] += 1
            assert order == "panels" or (count <= HEIGHT and (row - first) % HEIGHT == 0)
        expected = np.zeros_like(times)
        expected[begin:end, first : first + num_rows] = 1
        np.testing.assert_array_equal(times, expected)
    assert len(run(0, 3, 0, 0)) == (3 if order == "panels" else 0)
