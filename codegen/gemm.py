"""The GEMM loop nest, once for all ISAs and formats: C[m, n] = sum over k of A[m, k] * W[n, k].

W is packed in N-panels (codegen.panels.PanelLayout), A is row-major. A core owns whole panels (loop
jr); inside a panel, K is cut in blocks of KC (pc), the panel in tiles of NV vectors, M in register
tiles of MR rows (ir) and one exact tail slice for M mod MR. What happens in a register tile is in
codegen.register_tile. Every output element has one order of additions, for every M, tile and plan,
so a row's result never depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codegen.integer_tile import ChannelTile, GroupTile
from codegen.kit import Expr, Kit, T
from codegen.panels import PanelLayout
from codegen.parallel import split
from codegen.register_tile import Activations, FloatTile, Place, RegisterTile, Weights
from codegen.spec import GemmTile, TileRanges, WeightFormat

# epilogue(row, panel, columns, vectors): stores the part of one row that a register tile has;
# vectors[j] belongs to vector columns[j] of the panel.
Epilogue = Callable[[Expr, Expr, Sequence[int], Sequence[Expr]], None]


@dataclass(frozen=True)
class Gemm:
    """One GEMM of a program.

    tiles: by number of rows; the binary chooses. partial: float32 (num_rows, n_padded) scratch,
    used where a tile cuts K in blocks. in_halves: the left and the right half of a panel belong
    together, so every register tile has the same vectors of both.
    """

    kit: Kit
    layout: PanelLayout
    tiles: TileRanges
    a: Activations
    w: Weights
    partial: Expr
    epilogue: Epilogue
    in_halves: bool = False

    def emit(self, core: Expr, num_cores: int, num_rows: Expr) -> None:
        """The share of `core`: its panels, for the first `num_rows` rows of A.

        A Python number of rows gets no code for any other.
        """
        (bound, tile), *larger = self.tiles
        self._emit_from(bound, tile, larger, core, num_cores, num_rows)

    def _emit_from(
        self,
        bound: int,
        tile: GemmTile,
        larger: Sequence[tuple[int, GemmTile]],
        core: Expr,
        num_cores: int,
        num_rows: Expr,
    ) -> None:
        nest = _Nest(self, tile)
        if not larger:
            nest.emit(core, num_cores, num_rows)
            return
        with T.If(num_rows <= bound):
            with T.Then():
                nest.emit(core, num_cores, num_rows)
            with T.Else():
                (next_bound, next_tile), *rest = larger
                self._emit_from(next_bound, next_tile, rest, core, num_cores, num_rows)


def arithmetic_of(weights: WeightFormat) -> type[RegisterTile]:
    """The arithmetic of a register tile for weights of a format."""
    if weights.has_int8_activations:
        return GroupTile if weights.group else ChannelTile
    return FloatTile


def column_tiles(num_vectors: int, nv: int, in_halves: bool) -> list[tuple[int, ...]]:
    """The vectors of a panel in tiles of `nv` (0: all), in pairs from both halves if they belong
    together.
    """
    if in_halves:
        half = num_vectors // 2
        return [
            (*left, *(half + j for j in left)) for left in column_tiles(half, -(-nv // 2), False)
        ]
    step = nv or num_vectors
    return [
        tuple(range(first, min(first + step, num_vectors))) for first in range(0, num_vectors, step)
    ]


@dataclass(frozen=True)
class _Nest:
    """The loops of a GEMM with one tile."""

    gemm: Gemm
    tile: GemmTile

    @property
    def num_k_blocks(self) -> int:
        return self.gemm.layout.num_k_blocks(self.tile.kc)

    def emit(self, core: Expr, num_cores: int, num_rows: Expr) -> None:
        layout = self.gemm.layout
        begin, end = split(core, num_cores, layout.num_panels)
        tail_width = layout.n_padded - (layout.num_panels - 1) * layout.panel
        num_full = layout.num_panels - (tail_width != layout.panel)
        with T.serial(begin, T.min(end, num_full)) as panel:
            self._panel(panel, layout.panel // layout.lanes, num_rows)
        if num_full < layout.num_panels:
            with T.If(T.And(end == layout.num_panels, begin < end)), T.Then():
                self._panel(end - 1, tail_width // layout.lanes, num_rows)

    def _panel(self, panel: Expr, num_vectors: int, num_rows: Expr) -> None:
        mr = self.tile.mr
        with T.serial(0, self.num_k_blocks) as k_block:
            for columns in column_tiles(num_vectors, self.tile.nv, self.gemm.in_halves):

                def tile(row: Expr, rows: int, columns: Sequence[int] = columns) -> None:
                    self._tile(panel, num_vectors, columns, k_block, row, rows)

                with T.serial(0, num_rows // mr) as tile_row:
                    tile(tile_row * mr, mr)
                if isinstance(num_rows, int):
                    if num_rows % mr:
                        tile(num_rows - num_rows % mr, num_rows % mr)
                    continue
                tail = T.bind(num_rows % mr)
                for rows in range(1, mr):
                    with T.If(tail == rows), T.Then():
                        tile(num_rows - rows, rows)

    def _tile(
        self,
        panel: Expr,
        num_vectors: int,
        columns: Sequence[int],
        k_block: Expr,
        row: Expr,
        rows: int,
    ) -> None:
        """A register tile of `rows` x `columns` over one K block."""
        gemm, lanes = self.gemm, self.gemm.kit.lanes
        place = Place(panel, num_vectors, columns, row, rows)
        make = arithmetic_of(gemm.layout.format)
        tile = make(gemm.kit, gemm.layout, self.tile, gemm.a, gemm.w, place)

        def partial_at(i: int, j: int) -> tuple[Expr, Expr]:
            return row + i, panel * gemm.layout.panel + columns[j] * lanes

        def finish() -> None:
            for i in range(rows):
                gemm.epilogue(row + i, panel, columns, tile.results(i))

        if self.num_k_blocks == 1:
            tile.clear()
            tile.multiply(0)
            finish()
            return
        with T.If(k_block == 0):
            with T.Then():
                tile.clear()
            with T.Else():
                tile.restore(lambda i, j: gemm.kit.load(gemm.partial, *partial_at(i, j)))
        tile.multiply(k_block)
        with T.If(k_block == self.num_k_blocks - 1):
            with T.Then():
                finish()
            with T.Else():
                for i in range(rows):
                    for j, vector in enumerate(tile.saved(i)):
                        gemm.kit.store(gemm.partial, partial_at(i, j), vector)
