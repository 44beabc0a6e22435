"""Register tiles over a K block, and the function that computes one.

The function is a program's own for all GEMMs whose K, formats and tiles are alike, whichever their
matrices, columns of A and epilogues.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from codegen.functions import View, call_inner
from codegen.gemm.float_tile import FloatTile
from codegen.gemm.integer_tile import ChannelTile, GroupTile
from codegen.gemm.register_tile import Activations, Place, RegisterTile, Weights
from codegen.kit import Expr, Kit, T
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile, WeightFormat

_PLACE_NUMBERS = (
    "panel",
    "row",
    "shift",
    "before",
    "first_row",
)  # those that differ from call to call
_ANY = 1 << 40  # elements of a dimension that only its stride matters of


def arithmetic_of(weights: WeightFormat) -> type[FloatTile | GroupTile | ChannelTile]:
    """The arithmetic of a register tile for weights of a format."""
    if weights.has_int8_activations:
        return GroupTile if weights.group else ChannelTile
    return FloatTile


@dataclass(frozen=True)
class Operands:
    """What the register tiles of a GEMM read and write: A, W, `partial` sums between K blocks and,
    if there is one, the scratch that a K block was unpacked into.
    """

    kit: Kit
    layout: PanelLayout
    tile: GemmTile
    a: Activations
    w: Weights
    partial: Expr
    unpacked: Expr | None

    @property
    def num_k_blocks(self) -> int:
        """Blocks that K is cut into."""
        return self.layout.num_k_blocks(self.tile.kc)

    def at(self, place: Place) -> RegisterTile:
        """The register tile at a place."""
        make = arithmetic_of(self.layout.format)
        parts = self.kit, self.layout, self.tile, self.a, self.w, place
        return make(*parts, scratch=self.unpacked)

    def _partial_at(self, place: Place, i: int, j: int) -> tuple[Expr, Expr]:
        """Where the partial sums of vector j of row i of a tile are."""
        layout = self.layout
        return place.row + i, place.panel * layout.panel + place.vectors[j] * layout.lanes

    def begin(self, tile: RegisterTile, k_block: Expr) -> None:
        """Set the sums of a tile to those of the K block before, if there is one."""
        if self.num_k_blocks == 1:
            tile.clear()
            return
        with T.If(k_block == 0):
            with T.Then():
                tile.clear()
            with T.Else():
                tile.restore(
                    lambda i, j: self.kit.load(self.partial, *self._partial_at(tile.place, i, j))
                )

    def end(self, tile: RegisterTile, k_block: Expr, finish: Callable[[], None]) -> None:
        """`finish` after the last K block; before, keep the sums of a tile for the next."""
        if self.num_k_blocks == 1:
            finish()
            return
        with T.If(k_block == self.num_k_blocks - 1):
            with T.Then():
                finish()
            with T.Else():
                for i in range(tile.place.rows):
                    for j, vector in enumerate(tile.saved(i)):
                        self.kit.store(self.partial, self._partial_at(tile.place, i, j), vector)

    def compute(
        self, place: Place, heights: Sequence[int], count: Expr, k_block: Expr, finished: Expr
    ) -> None:
        """Call the function that multiplies a tile of `count` rows, one of `heights`, with a K
        block; after the last one its results are in `finished`, float32 (rows, columns of a panel),
        from the first column on.
        """

        def body(given: Mapping[str, Expr]) -> None:
            here, k_block = self._in_function(given), given["k_block"]
            numbers = {name: given[name] for name in _PLACE_NUMBERS}
            for rows in heights:
                with T.If(given["count"] == rows), T.Then():
                    tile = here.at(replace(place, rows=rows, **numbers))
                    here.begin(tile, k_block)
                    tile.multiply(k_block)
                    here.end(tile, k_block, partial(here.write, tile, given["finished"]))

        views = self._views() | {"finished": View(finished, (0, 0), (_ANY, finished.shape[1]))}
        numbers = {name: getattr(place, name) for name in _PLACE_NUMBERS}
        numbers |= {"count": count, "k_block": k_block, "summed_from": self.a.summed_from}
        call_inner("register_tiles", views | numbers, body)

    def write(self, tile: RegisterTile, finished: Expr) -> None:
        """finished[:rows, :columns] = the results of a tile."""
        for i in range(tile.place.rows):
            for j, vector in enumerate(tile.results(i)):
                self.kit.store(finished, (i, j * self.kit.lanes), vector)

    def _views(self) -> dict[str, View]:
        """What is read and written, by name, as a function sees it that many GEMMs share."""
        a, w = self.a, self.w
        rows = {"a": a.words, "a_scales": a.scales, "a_bias": a.bias, "a_sums": a.sums}
        if self.num_k_blocks > 1:
            rows["partial"] = self.partial
        flat = {"w": w.words, "scales": w.scales, "zero_points": w.zero_points, "minima": w.minima}
        views = {
            name: View(buffer, (0, 0), (_ANY, buffer.shape[1]))
            for name, buffer in rows.items()
            if buffer is not None
        }
        views |= {
            name: View(buffer, w.at(0), (_ANY,))
            for name, buffer in flat.items()
            if buffer is not None
        }
        if self.unpacked is not None:
            views["unpacked"] = View(self.unpacked, (0,), (_ANY,))
        return views

    def _in_function(self, given: Mapping[str, Expr]) -> Operands:
        find = given.get
        sums = find("a_sums"), given["summed_from"]
        extras = (find(name) for name in ("scales", "zero_points", "minima"))
        return replace(
            self,
            a=Activations(given["a"], find("a_scales"), find("a_bias"), *sums),
            w=Weights(given["w"], (), *extras),
            partial=find("partial"),
            unpacked=find("unpacked"),
        )
