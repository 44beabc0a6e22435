"""The order in which a core goes through its share of C: cells of one panel by a block of rows.

    panels  panel by panel, all rows of each: a panel is read once, A for every panel
    rows    row block by row block, all panels of each: A is read once, a panel for every block
    curve   along a Hilbert curve, where neighbours share their panel or their rows, so that a
            square of cells needs few of both, whatever the size of the cache that holds them

Matrix products along a space-filling curve that takes any rectangle: Georganas, Heinecke, Dubey,
"Space Filling Curves is All You Need" (arXiv 2601.16294). Here the curve fills squares side by
side, and steps over what is outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codegen.kit import Expr, T

MAX_LEVELS = 15  # the shorter side of a grid has at most 2 ** 15 cells


@dataclass(frozen=True)
class Share:
    """What a core has of C: panels [begin, end), and `num_rows` rows from `first` on."""

    begin: Expr
    end: Expr
    first: Expr
    num_rows: Expr


def walk(order: str, share: Share, height: int, visit: Callable[[Expr, Expr, Expr], None]) -> None:
    """visit(panel, first row, number of rows) for every cell of a share once, in blocks of `height`
    rows; the order "panels" knows no blocks.
    """
    if order == "panels":
        with T.serial(share.begin, share.end) as panel:
            visit(panel, share.first, share.num_rows)
        return

    def cell(panel: Expr, block: Expr) -> None:
        done = T.bind(block * height)
        visit(panel, share.first + done, T.bind(T.min(share.num_rows - done, height)))

    num_blocks = (share.num_rows + height - 1) // height
    if order == "rows":
        with T.serial(0, num_blocks) as block, T.serial(share.begin, share.end) as panel:
            cell(panel, block)
        return
    curve(share.end - share.begin, num_blocks, lambda x, y: cell(share.begin + x, y))


def curve(width: Expr, height: Expr, visit: Callable[[Expr, Expr], None]) -> None:
    """visit(x, y) for every cell of a grid once, along Hilbert curves over squares as large as the
    shorter side; each ends beside where the next one begins.
    """
    long, short = T.bind(T.max(width, height)), T.bind(T.min(width, height))
    levels = T.bind(sum(T.cast(short > 1 << bit, "int32") for bit in range(MAX_LEVELS)))
    num_squares = (long + (1 << levels) - 1) >> levels
    at = T.alloc_buffer((2,), "int32")
    with T.serial(0, num_squares << (2 * levels)) as step:
        _to_point(step, levels, at)
        along = T.bind((step >> (2 * levels) << levels) + at[0])
        across = T.bind(at[1])
        is_wide = width >= height
        with T.If(T.And(along < long, across < short)), T.Then():
            visit(
                T.bind(T.Select(is_wide, along, across)), T.bind(T.Select(is_wide, across, along))
            )


def _to_point(step: Expr, levels: Expr, at: Expr) -> None:
    """Set `at` to the point (x, y) of a step on a Hilbert curve over a square of 2 ** levels: two
    bits of the step say in which quarter it is, from the smallest square to the largest.
    """
    T.buffer_store(at, T.int32(0), [0])
    T.buffer_store(at, T.int32(0), [1])
    with T.serial(0, levels) as level:
        bits = T.bind(step >> (2 * level))
        side = T.bind(T.shift_left(T.int32(1), level))
        right = T.bind((bits >> 1) & 1)
        upper = T.bind((bits ^ right) & 1)
        x, y = T.bind(at[0]), T.bind(at[1])
        # lower quarters change x and y; the last of them also runs backwards
        back = T.bind(right * (side - 1))
        T.buffer_store(at, T.Select(upper == 0, y ^ back, x) + right * side, [0])
        T.buffer_store(at, T.Select(upper == 0, x ^ back, y) + upper * side, [1])
