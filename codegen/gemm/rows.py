"""The numbers of rows that each tile of a GEMM is for, so that no code is made for any other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from codegen.kit import Expr, T
from codegen.spec import GemmTile, TileRanges


@dataclass(frozen=True)
class RowNumbers:
    """Numbers of rows: `spans` are not empty and ascend, with gaps between them, among 1 to
    `largest`.
    """

    spans: tuple[range, ...]
    largest: int

    def tails(self, mr: int) -> list[int]:
        """The remainders, but zero, that they leave after whole tiles of `mr` rows."""
        # the first numbers of a span leave all that it has
        return sorted({number % mr for span in self.spans for number in span[:mr]} - {0})

    def reach(self, mr: int) -> bool:
        """Whether one of them has a whole tile of `mr` rows."""
        return self.spans[-1][-1] >= mr

    def include(self, num_rows: Expr) -> Expr:
        """Whether `num_rows`, one of 1 to `largest`, is one of them."""
        return reduce(T.Or, [self._is_in(span, num_rows) for span in self.spans])

    def _is_in(self, span: range, num_rows: Expr) -> Expr:
        if span[0] == 1:
            return num_rows <= span[-1]
        if span[-1] == self.largest:
            return num_rows >= span[0]
        return T.And(num_rows >= span[0], num_rows <= span[-1])


def rows_of_tiles(ranges: TileRanges, numbers: range) -> dict[GemmTile, RowNumbers]:
    """The tiles that `numbers` of rows meet, and those that each is for; one that several ranges
    have comes once.
    """
    spans: dict[GemmTile, list[range]] = {}
    first = numbers[0]
    for place, (bound, tile) in enumerate(ranges):
        last = numbers[-1] if place == len(ranges) - 1 else min(bound, numbers[-1])
        if first > last:
            continue
        mine = spans.setdefault(tile, [])
        if mine and mine[-1].stop == first:
            first = mine.pop()[0]
        mine.append(range(first, last + 1))
        first = last + 1
    return {tile: RowNumbers(tuple(mine), numbers[-1]) for tile, mine in spans.items()}
