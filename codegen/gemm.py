"""The GEMM loop nest, once for all ISAs and dtypes: C[m, n] = sum over k of A[m, k] * W[n, k].

W is packed in N-panels (codegen.layout.PanelLayout), A is row-major. A core owns whole panels (loop
jr); inside a panel, K is cut in blocks of KC (pc), M in register tiles of MR rows (ir) and one
exact tail slice for M mod MR. Every output element is one chain of multiply-adds over k in
ascending order from zero, for every M, tile and plan, so a row's result never depends on the rows
beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codegen.kit import CACHE_LINE_BYTES, Expr, Kit, T
from codegen.layout import PanelLayout
from codegen.parallel import split
from codegen.spec import GemmTile

# epilogue(row, panel, accumulators): stores one row of a tile; accumulators are its vectors, left
# to right.
Epilogue = Callable[[Expr, Expr, Sequence[Expr]], None]


@dataclass(frozen=True)
class Gemm:
    """One GEMM of a program.

    a: activations (num_tokens, words); w: packed weights (num_layers, num_words) read at `layer`,
    or (num_words,) if it is None; partial: float32 (num_tokens, n_padded) scratch, used where the
    tile cuts K in blocks.
    """

    kit: Kit
    layout: PanelLayout
    tile: GemmTile
    a: Expr
    w: Expr
    layer: Expr | None
    partial: Expr
    epilogue: Epilogue

    @property
    def k_words_per_block(self) -> int:
        """Weight words of one K block."""
        per_block = self.tile.kc // self.layout.kr
        return min(per_block, self.layout.k_words) if per_block else self.layout.k_words

    @property
    def num_k_blocks(self) -> int:
        """Blocks K is cut into."""
        return -(-self.layout.k_words // self.k_words_per_block)

    def emit(self, core: Expr, num_cores: int, num_rows: Expr) -> None:
        """The share of `core`: its panels, for the first `num_rows` rows of A."""
        layout = self.layout
        begin, end = split(core, num_cores, layout.num_panels)
        tail_width = layout.n_padded - (layout.num_panels - 1) * layout.panel
        num_full = layout.num_panels - (tail_width != layout.panel)
        with T.serial(begin, T.min(end, num_full)) as panel:
            self._panel(panel, layout.panel // layout.lanes, num_rows)
        if num_full < layout.num_panels:
            with T.If(T.And(end == layout.num_panels, begin < end)), T.Then():
                self._panel(end - 1, tail_width // layout.lanes, num_rows)

    def _panel(self, panel: Expr, num_vectors: int, num_rows: Expr) -> None:
        with T.serial(0, self.num_k_blocks) as k_block:
            with T.serial(0, num_rows // self.tile.mr) as tile_row:
                self._tile(panel, num_vectors, k_block, tile_row * self.tile.mr, self.tile.mr)
            tail = T.bind(num_rows % self.tile.mr)
            for rows in range(1, self.tile.mr):
                with T.If(tail == rows), T.Then():
                    self._tile(panel, num_vectors, k_block, num_rows - rows, rows)

    def _tile(self, panel: Expr, num_vectors: int, k_block: Expr, row: Expr, rows: int) -> None:
        """A register tile of `rows` x `num_vectors` vectors over one K block."""
        kit, layout, lanes = self.kit, self.layout, self.kit.lanes
        width = num_vectors * lanes
        column = panel * layout.panel
        base = T.bind(T.cast(panel, "int64") * (layout.panel * layout.k_words))
        k_begin = k_block * self.k_words_per_block
        acc = Accumulators(kit, rows, num_vectors)

        if self.num_k_blocks == 1:
            acc.clear()
        else:
            with T.If(k_block == 0):
                with T.Then():
                    acc.clear()
                with T.Else():
                    acc.load(lambda i, j: kit.load(self.partial, row + i, column + j * lanes))

        def multiply(k_word: Expr) -> None:
            at = T.bind(base + T.cast(k_word, "int64") * width)
            if self.tile.prefetch_bytes:
                self._prefetch(at, width)
            vectors = [
                T.bind(kit.load(self.w, *self._word(at + j * lanes))) for j in range(num_vectors)
            ]
            acc.multiply(vectors, lambda i: kit.a_operand(lambda w: self.a[row + i, w], k_word))

        k_loop(k_begin, self.k_words_per_block, layout.k_words, self.tile.k_unroll, multiply)

        def finish() -> None:
            for i in range(rows):
                self.epilogue(row + i, panel, acc.row(i))

        if self.num_k_blocks == 1:
            finish()
            return
        with T.If(k_block == self.num_k_blocks - 1):
            with T.Then():
                finish()
            with T.Else():
                for i in range(rows):
                    for j, vector in enumerate(acc.row(i)):
                        kit.store(self.partial, (row + i, column + j * lanes), vector)

    def _word(self, at: Expr) -> tuple[Expr, ...]:
        return (at,) if self.layer is None else (self.layer, at)

    def _prefetch(self, at: Expr, width: int) -> None:
        """Ask for the cache lines of one K step, `prefetch_bytes` ahead of word `at`."""
        for line in range(0, width * 4, CACHE_LINE_BYTES):
            ahead = self.tile.prefetch_bytes + line
            self.kit.prefetch(self.w, *self._word(at), ahead_bytes=ahead)


class Accumulators:
    """A register tile of float32 vectors, `rows` x `num_vectors`."""

    def __init__(self, kit: Kit, rows: int, num_vectors: int) -> None:
        self._kit, self._rows, self._num_vectors = kit, rows, num_vectors
        self._buffer = T.alloc_buffer((rows * num_vectors * kit.lanes,), "float32", scope="local")

    def _at(self, i: int, j: int) -> int:
        return (i * self._num_vectors + j) * self._kit.lanes

    def load(self, value: Callable[[int, int], Expr]) -> None:
        """Set every vector (i, j) to `value(i, j)`."""
        for i in range(self._rows):
            for j in range(self._num_vectors):
                self._kit.store(self._buffer, (self._at(i, j),), value(i, j))

    def clear(self) -> None:
        """Set every vector to zero."""
        self.load(lambda i, j: self._kit.zeros())

    def row(self, i: int) -> list[Expr]:
        """The vectors of row i."""
        return [self._kit.load(self._buffer, self._at(i, j)) for j in range(self._num_vectors)]

    def add(self, i: int, vectors: Sequence[Expr]) -> None:
        """Add `vectors` to the first ones of row i."""
        for j, vector in enumerate(vectors):
            at = self._at(i, j)
            self._kit.store(self._buffer, (at,), self._kit.load(self._buffer, at) + vector)

    def multiply(self, b: Sequence[Expr], a: Callable[[int], tuple[Expr, ...]]) -> None:
        """One K step: row i gains a(i) times each vector of `b`."""
        for i in range(self._rows):
            scalars = a(i)
            for j, vector in enumerate(b):
                at = self._at(i, j)
                value = self._kit.mac(self._kit.load(self._buffer, at), scalars, vector)
                self._kit.store(self._buffer, (at,), value)


def k_loop(
    begin: Expr, per_block: int, total: int, unroll: int, step: Callable[[Expr], None]
) -> None:
    """step(k) for the K words of a block from `begin`, `unroll` of them per turn, then the exact
    remainder.
    """
    exact = total % per_block == 0
    count: Expr = per_block if exact else T.min(per_block, total - begin)
    with T.serial(0, count // unroll) as turn:
        for u in range(unroll):
            step(begin + turn * unroll + u)
    if exact and per_block % unroll == 0:
        return
    with T.serial(count // unroll * unroll, count) as k_word:
        step(begin + k_word)
