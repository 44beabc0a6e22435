"""The GEMM loop nest, once for all ISAs and formats: C[m, n] = sum over k of A[m, k] * W[n, k].

W is packed in N-panels (codegen.layout.panels.PanelLayout), A is row-major. A core owns whole
panels (loop jr) or, if the tile says so, a part of M in them, and goes through cells of a panel by
all rows or a block of them (codegen.gemm.walk). In a cell, K is cut in blocks of KC (pc), the panel
in tiles of NV vectors, the rows in register tiles of MR (ir) and one exact tail slice for M mod MR.
What happens in a register tile is in codegen.gemm.register_tile, and how the code of one comes to
be shared in codegen.gemm.tile_function. Every output element has one order
of additions, for every M, tile and plan, so a row's result never depends on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from codegen.cores.parallel import split
from codegen.gemm.amx_tile import BLOCK_ROWS, BLOCK_VECTORS, AmxBlock, alloc_scratch, has_tiles
from codegen.gemm.float_tile import with_sums
from codegen.gemm.register_tile import Activations, Place, RegisterTile, Weights
from codegen.gemm.rows import RowNumbers, rows_of_tiles
from codegen.gemm.tile_function import Operands
from codegen.gemm.unpacking import alloc_unpacked, unpacking_of
from codegen.gemm.walk import Share, walk
from codegen.kit import Expr, Kit, T
from codegen.layout.panels import PanelLayout
from codegen.spec import BLOCK_ASPECT, Cut, GemmTile, TileRanges

# epilogue(row, place, vectors): stores the part of one row that a register tile has; vectors[j]
# belongs to vector place.vectors[j] of the panel. Tiles of a row and panel follow each other from
# left to right on one core.
Epilogue = Callable[[Expr, Place, Sequence[Expr]], None]


@dataclass(frozen=True)
class Slice:
    """The rows of A that meet a matrix: from `first` on, at most `most` of them.

    turn, turns: of products with matrices of one shape that follow each other. Their panels are
    dealt to the cores together, so that a core has work though each of them has few panels.
    """

    most: int
    first: Expr = 0
    turn: Expr = 0
    turns: Expr = 1


@dataclass(frozen=True)
class Gemm:
    """One GEMM of a program.

    tiles: by number of rows; the binary chooses. partial: float32 (rows of A, n_padded) scratch,
    used where a tile cuts K in blocks. in_halves: the left and the right half of a panel belong
    together, so every register tile has the same vectors of both. stop: int32 (1,); once it is not
    zero, no more panels are computed. rows: None for all rows of A.
    """

    kit: Kit
    layout: PanelLayout
    tiles: TileRanges
    a: Activations
    w: Weights
    partial: Expr
    epilogue: Epilogue
    in_halves: bool = False
    stop: Expr | None = None
    rows: Slice | None = None

    @property
    def extent(self) -> Slice:
        """The rows of A that it may have."""
        return self.rows or Slice(int(self.a.words.shape[0]))

    def emit(self, share: Expr, cut: Cut, num_rows: Expr) -> None:
        """A share: its panels, for the first `num_rows` rows of its slice of A.

        A Python number of rows gets no code for any other.
        """
        is_fixed = isinstance(num_rows, int)
        most = num_rows if is_fixed else self.extent.most
        numbers = rows_of_tiles(self.tiles, range(num_rows if is_fixed else 1, most + 1))
        nests = [_Nest(self, tile, mine) for tile, mine in numbers.items()]
        self._emit_one_of(nests, share, cut, num_rows)

    def _emit_one_of(self, nests: Sequence[_Nest], share: Expr, cut: Cut, num_rows: Expr) -> None:
        nest, *others = nests
        if not others:
            nest.emit(share, cut, num_rows)
            return
        with T.If(nest.numbers.include(num_rows)):
            with T.Then():
                nest.emit(share, cut, num_rows)
            with T.Else():
                self._emit_one_of(others, share, cut, num_rows)


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


def column_runs(tiles: Sequence[Sequence[int]]) -> list[tuple[Sequence[int], int, int]]:
    """(first tile, step, number) for runs of tiles that are each the one before moved by `step`
    vectors.
    """
    runs: list[tuple[Sequence[int], int, int]] = []
    for tile in tiles:
        if runs:
            first, step, number = runs[-1]
            step = step or tile[0] - first[0]
            if [j + step * number for j in first] == [*tile]:
                runs[-1] = first, step, number + 1
                continue
        runs.append((tile, 0, 1))
    return runs


def block_rows(layout: PanelLayout, height: int) -> int:
    """Rows of a block, whole register tiles of `height` rows."""
    return max(BLOCK_ASPECT * layout.panel // height, 1) * height


def row_parts(tile: GemmTile, num_cores: int) -> int:
    """Parts that M is cut in on so many cores: those of the tile, or one if they do not divide."""
    return 1 if num_cores % tile.row_parts else tile.row_parts


@dataclass(frozen=True)
class _Nest:
    """The loops of a GEMM with one tile, for some numbers of rows."""

    gemm: Gemm
    tile: GemmTile
    numbers: RowNumbers

    @property
    def height(self) -> int:
        """Rows that are not parted: of a register tile, or of a block of AMX."""
        gemm = self.gemm
        return BLOCK_ROWS if has_tiles(gemm.kit.isa, gemm.layout.format) else self.tile.mr

    def emit(self, index: Expr, cut: Cut, num_rows: Expr) -> None:
        layout, parts = self.gemm.layout, row_parts(self.tile, cut.num_cores)
        core, piece = index // cut.per_core, index % cut.per_core
        group = core // parts * cut.per_core + piece
        rows = self.gemm.extent
        num_groups = cut.num_shares // parts
        begin, end = split(group, num_groups, layout.num_panels, rows.turn, rows.turns)
        share = Share(begin, end, *self._rows(core, parts, num_rows))
        # every part and block of rows but the last is of whole register tiles
        gemm, unpacked = self.gemm, alloc_unpacked(self.gemm.kit, layout, self.tile)
        finished = T.alloc_buffer((self.tile.mr, layout.panel), "float32")
        a, w = self._with_sums(share), gemm.w
        operands = Operands(gemm.kit, layout, self.tile, a, w, gemm.partial, unpacked)
        cell = _Cell(gemm, self.numbers, operands, finished)
        walk(self.tile.order, share, block_rows(layout, self.height), cell.emit_unless_stopped)

    def _with_sums(self, share: Share) -> Activations:
        """A with what minima meet of the rows of a share, where nobody has made it yet."""
        gemm, weights = self.gemm, self.gemm.layout.format
        if not weights.has_minima or weights.has_int8_activations:
            return gemm.a
        rows, most = (share.first, share.num_rows), self.numbers.spans[-1][-1]
        return with_sums(gemm.kit, gemm.layout, gemm.a, *rows, most)

    def _rows(self, core: Expr, parts: int, num_rows: Expr) -> tuple[Expr, Expr]:
        """First row and number of rows of `core`: whole register tiles, but for the last part."""
        top = self.gemm.extent.first
        if parts == 1:
            return top, num_rows
        begin, end = split(core % parts, parts, (num_rows + self.height - 1) // self.height)
        first = T.bind(begin * self.height)
        return T.bind(top + first), T.bind(T.min(end * self.height, num_rows) - first)


@dataclass(frozen=True)
class _Cell:
    """The loops inside a cell of C: one panel by some rows, whose remainder after whole register
    tiles is that of one of `numbers`. finished: float32 (mr, panel) scratch.
    """

    gemm: Gemm
    numbers: RowNumbers
    operands: Operands
    finished: Expr

    def emit_unless_stopped(self, panel: Expr, first: Expr, num_rows: Expr) -> None:
        """As `emit`; nothing once the GEMM's `stop` is set."""
        if self.gemm.stop is None:
            self.emit(panel, first, num_rows)
        else:
            with T.If(self.gemm.stop[0] == 0), T.Then():
                self.emit(panel, first, num_rows)

    def emit(self, panel: Expr, first: Expr, num_rows: Expr) -> None:
        """Rows [first, first + num_rows) of a panel, which is as wide as all or the last one."""
        gemm, layout = self.gemm, self.gemm.layout
        emit = self._blocks if has_tiles(gemm.kit.isa, layout.format) else self._tiles
        num_full, rest = divmod(layout.n_padded, layout.panel)
        whole, last = layout.panel // layout.lanes, rest // layout.lanes
        if not (num_full and rest):
            emit(panel, whole if num_full else last, first, num_rows)
            return
        with T.If(panel < num_full):
            with T.Then():
                emit(panel, whole, first, num_rows)
            with T.Else():
                emit(panel, last, first, num_rows)

    def _tiles(self, panel: Expr, num_vectors: int, first: Expr, num_rows: Expr) -> None:
        """In register tiles."""
        gemm, operands, tile = self.gemm, self.operands, self.operands.tile
        tiles = column_tiles(num_vectors, tile.nv, gemm.in_halves)
        with T.serial(0, operands.num_k_blocks) as k_block:
            if operands.unpacked is not None:
                whole = Place(panel, num_vectors, range(num_vectors), 0, 0)
                unpack = unpacking_of(gemm.layout)
                words = unpack(gemm.kit, gemm.layout, tile, gemm.w, whole)
                words.to_scratch(k_block, operands.unpacked, tiles)
            before = 0
            for columns, step, number in column_runs(tiles):
                with T.serial(0, number) as turn:
                    place = Place(
                        *(panel, num_vectors, columns, first, tile.mr),
                        shift=turn * step,
                        before=before + turn * len(columns),
                        first_row=first,
                    )
                    self._tiles_of_columns(place, num_rows, k_block)
                before += number * len(columns)

    def _tiles_of_columns(self, place: Place, num_rows: Expr, k_block: Expr) -> None:
        """Register tiles for `num_rows` rows like those of `place` and below it."""
        gemm, mr = self.gemm, place.rows
        heights = [*([mr] if self.numbers.reach(mr) else []), *self.numbers.tails(mr)]
        lanes = [j * gemm.kit.lanes for j in range(len(place.columns))]
        with T.serial(0, (num_rows + (mr - 1)) // mr) as above:
            here = replace(place, row=T.bind(place.row + above * mr))
            count = T.bind(T.min(num_rows - above * mr, mr))
            self.operands.compute(here, heights, count, k_block, self.finished)
            is_last = k_block == self.operands.num_k_blocks - 1
            with T.If(is_last), T.Then(), T.serial(0, count) as i:
                vectors = [T.bind(gemm.kit.load(self.finished, i, at)) for at in lanes]
                gemm.epilogue(here.row + i, here, vectors)

    def _blocks(self, panel: Expr, num_vectors: int, first: Expr, num_rows: Expr) -> None:
        """In blocks of AMX, which take the remainder of the rows as it comes."""
        gemm, operands, scratch = self.gemm, self.operands, alloc_scratch()

        def end(tile: RegisterTile, k_block: Expr) -> None:
            row, place = tile.place.row, tile.place
            operands.end(tile, k_block, lambda: gemm.epilogue(row, place, tile.results(0)))

        with (
            T.serial(0, operands.num_k_blocks) as k_block,
            T.serial(0, (num_rows + BLOCK_ROWS - 1) // BLOCK_ROWS) as block_row,
        ):
            row = T.bind(first + block_row * BLOCK_ROWS)
            rows = T.bind(T.min(first + num_rows - row, BLOCK_ROWS))
            for columns in column_tiles(num_vectors, BLOCK_VECTORS, gemm.in_halves):
                place = Place(panel, num_vectors, columns, row, rows)
                parts = gemm.kit, gemm.layout, operands.tile, operands.a, gemm.w
                block = AmxBlock(*parts, place, scratch)
                with T.serial(0, rows) as i:
                    tile = operands.at(replace(place, row=row + i, rows=1))
                    operands.begin(tile, k_block)
                    block.put(i, tile)
                block.multiply(k_block)
                with T.serial(0, rows) as i:
                    tile = operands.at(replace(place, row=row + i, rows=1))
                    block.take(i, tile, k_block)
                    end(tile, k_block)
