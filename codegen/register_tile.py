"""The arithmetic of a register tile: rows of activations times vectors of packed weights.

Every format multiplies in one ascending order of k, whatever the tile. Knows nothing of the loops
around a tile, nor of what becomes of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codegen.kit import CACHE_LINE_BYTES, Expr, Kit, T
from codegen.panels import PanelLayout
from codegen.spec import GemmTile


@dataclass(frozen=True)
class Activations:
    """Rows of A in memory: words (num_rows, words), as many as PanelLayout.k_padded values take.

    Only for int8: scales float32 (num_rows, 1 or groups); bias int32 (num_rows, groups), minus the
    sum of a group's values times the offset of the weights' codes (codegen.reference).
    """

    words: Expr
    scales: Expr = None
    bias: Expr = None


@dataclass(frozen=True)
class Weights:
    """Packed matrices in memory: of all layers, read at `layer`, or of one if it is None."""

    words: Expr
    layer: Expr | None = None
    scales: Expr = None
    zero_points: Expr = None

    def at(self, index: Expr) -> tuple[Expr, ...]:
        """The indices of element `index` of the matrix."""
        return (index,) if self.layer is None else (self.layer, index)


@dataclass
class RegisterTile:
    """`rows` rows from `row` on times the vectors `columns` of the `num_vectors` of a panel."""

    kit: Kit
    layout: PanelLayout
    tile: GemmTile
    a: Activations
    w: Weights
    panel: Expr
    num_vectors: int
    columns: Sequence[int]
    row: Expr
    rows: int

    def __post_init__(self) -> None:
        self._sums = Accumulators(self.kit, self.rows, len(self.columns))
        start = self.layout.panel * self.layout.k_words
        self._base = T.bind(T.cast(self.panel, "int64") * start)

    def clear(self) -> None:
        """Begin with nothing added."""
        self._sums.clear()

    def restore(self, load: Callable[[int, int], Expr]) -> None:
        """Go on from what `saved` gave after the K block before."""
        self._sums.load(load)

    def saved(self, i: int) -> list[Expr]:
        """What row i has so far, as float32 vectors."""
        return self._sums.row(i)

    def results(self, i: int) -> list[Expr]:
        """Row i of the product, float32 vectors in the order of `columns`."""
        return self._sums.row(i)

    def multiply(self, k_block: Expr) -> None:
        """Add the products of one K block."""
        kit, layout = self.kit, self.layout
        per_block = layout.block_words(self.tile.kc)
        width = self.num_vectors * kit.lanes

        def step(k_word: Expr) -> None:
            at = T.bind(self._base + T.cast(k_word, "int64") * width)
            if self.tile.prefetch_bytes:
                self._prefetch(at, width)
            vectors = [
                T.bind(kit.load(self.w.words, *self.w.at(at + j * kit.lanes))) for j in self.columns
            ]
            words = self.a.words
            self._sums.multiply(
                vectors, lambda i: kit.a_operand(lambda w: words[self.row + i, w], k_word)
            )

        k_loop(k_block * per_block, per_block, layout.k_words, self.tile.k_unroll, step)

    def _prefetch(self, at: Expr, width: int) -> None:
        """Ask for the cache lines of one K step, `prefetch_bytes` ahead of word `at`."""
        for line in range(0, width * 4, CACHE_LINE_BYTES):
            ahead = self.tile.prefetch_bytes + line
            self.kit.prefetch(self.w.words, *self.w.at(at), ahead_bytes=ahead)


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
