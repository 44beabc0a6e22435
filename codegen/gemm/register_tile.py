"""The arithmetic of a register tile: rows of activations times vectors of packed weights.

Every format multiplies in one ascending order of k, whatever the tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

from codegen.kit import CACHE_LINE_BYTES, Expr, Kit, T
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile


@dataclass(frozen=True)
class Activations:
    """Rows of A in memory: words (num_rows, words), as many as PanelLayout.k_padded values take.

    Only for int8: scales float32, bias int32 and sums float32, (num_rows, num_groups of the
    weights). What is in them, and which there are, is what codegen.layout.operands.Int8Rows says.
    Floats that meet minima have sums, too: of the values of groups, of rows from `summed_from` on.
    """

    words: Expr
    scales: Expr = None
    bias: Expr = None
    sums: Expr = None
    summed_from: Expr = 0

    def sum_of(self, row: Expr, group: Expr) -> Expr:
        """The sum of a group of a row."""
        return self.sums[row - self.summed_from, group]


@dataclass(frozen=True)
class Weights:
    """Packed matrices in memory, of which the one with the indices `which` is read: its layer, or
    none where there is but one.
    """

    words: Expr
    which: tuple[Expr, ...] = ()
    scales: Expr = None
    zero_points: Expr = None
    minima: Expr = None

    def at(self, index: Expr) -> tuple[Expr, ...]:
        """The indices of element `index` of the matrix."""
        return (*self.which, index)


@dataclass(frozen=True)
class Place:
    """Which part of the product a register tile is: `rows` rows from `row` on, and the vectors
    `columns` of a panel of `num_vectors`, or those that lie `shift` vectors behind them. before:
    vectors of the panel's tiles that come before it. first_row: of the tiles above and below it.
    """

    panel: Expr
    num_vectors: int
    columns: Sequence[int]
    row: Expr
    rows: int
    shift: Expr = 0
    before: Expr = 0
    first_row: Expr = 0

    @property
    def vectors(self) -> list[Expr]:
        """The places of its vectors in the panel."""
        return [self.shift + j for j in self.columns]


class PanelReader:
    """Reads packed weights at a place of the product, whose rows do not matter here."""

    def __init__(
        self, kit: Kit, layout: PanelLayout, tile: GemmTile, w: Weights, place: Place
    ) -> None:
        self.kit, self.layout, self.tile, self.w, self.place = kit, layout, tile, w, place
        self._width = place.num_vectors * kit.lanes
        self._shift = place.shift * kit.lanes
        self._first_word = T.bind(self._first(layout.k_words))

    def _first(self, per_column: int) -> Expr:
        """Index of the panel's first element in an array of `per_column` elements per column, or
        of the vector that the place is shifted by.
        """
        panel = T.cast(self.place.panel, "int64") * (self.layout.panel * per_column)
        return panel + T.cast(self._shift, "int64")

    def _words(self, k_word: Expr) -> list[Expr]:
        """The tile's weight vectors of one K word, with a prefetch of later ones."""
        at = T.bind(self._first_word + T.cast(k_word, "int64") * self._width)
        columns, lanes = self.place.columns, self.kit.lanes
        if self.tile.prefetch_bytes or self.tile.block_prefetch:
            self._prefetch(at)
        return [T.bind(self.kit.load(self.w.words, *self.w.at(at + j * lanes))) for j in columns]

    def _prefetch(self, at: Expr) -> None:
        """Ask for the tile's cache lines of a later K step than word `at`: for those of the one
        `prefetch_bytes` later, and for this row tile's share of those of the next K block.
        """
        word_bytes, kit, tile = self.layout.word_dtype.itemsize, self.kit, self.tile
        found = {j * kit.lanes * word_bytes // CACHE_LINE_BYTES for j in self.place.columns}
        offsets = [line * CACHE_LINE_BYTES for line in sorted(found)]
        for offset in offsets if tile.prefetch_bytes else ():
            ahead = tile.prefetch_bytes + offset
            kit.prefetch(self.w.words, *self.w.at(at), ahead_bytes=ahead)
        if not tile.block_prefetch:
            return
        per_tile = -(-len(offsets) // tile.block_prefetch)
        block_bytes = self.layout.block_words(tile.kc) * self._width * word_bytes
        above = (self.place.row - self.place.first_row) // tile.mr
        mine = T.min(above, tile.block_prefetch - 1) * per_tile
        for line in range(per_tile):
            ahead = block_bytes + offsets[0] + (mine + line) * CACHE_LINE_BYTES
            kit.prefetch(self.w.words, *self.w.at(at), ahead_bytes=T.cast(ahead, "int64"), level=2)

    def _of_group(self, array: Expr, group: Expr) -> list[Expr]:
        """The tile's vectors of one group of an array of scales, zero points or minima."""
        at = self._first(self.layout.num_groups) + T.cast(group, "int64") * self._width
        first = T.bind(at)
        return [
            self.kit.load(array, *self.w.at(first + j * self.kit.lanes)) for j in self.place.columns
        ]

    def _scales(self, group: Expr) -> list[Expr]:
        """The tile's scales of one group, float32 vectors."""
        return self._floats_of_group(self.w.scales, group)

    def _minima(self, group: Expr) -> list[Expr]:
        """The tile's minima of one group, float32 vectors."""
        return self._floats_of_group(self.w.minima, group)

    def _floats_of_group(self, array: Expr, group: Expr) -> list[Expr]:
        vectors = self._of_group(array, group)
        widen = {"float32": None, "bfloat16": "sw_widen_bf16", "float16": "sw_widen_f16"}
        name = widen[self.layout.format.scale_dtype]
        return [T.bind(self.kit.call(name, v) if name else v) for v in vectors]


class RegisterTile(PanelReader, ABC):
    """A tile of one format; `clear` or `restore`, then `multiply`, then `results` or `saved`."""

    def __init__(
        self,
        kit: Kit,
        layout: PanelLayout,
        tile: GemmTile,
        a: Activations,
        w: Weights,
        place: Place,
    ) -> None:
        super().__init__(kit, layout, tile, w, place)
        self.a = a

    @abstractmethod
    def clear(self) -> None:
        """Begin with nothing added."""

    @abstractmethod
    def restore(self, load: Callable[[int, int], Expr]) -> None:
        """Go on from the float32 vectors (row, column of the tile) that `saved` gave."""

    @abstractmethod
    def saved(self, i: int) -> list[Expr]:
        """What row i has so far, as float32 vectors, to go on from in the next K block."""

    @abstractmethod
    def results(self, i: int) -> list[Expr]:
        """Row i of the product, float32 vectors in the order of the tile's columns."""

    @abstractmethod
    def multiply(self, k_block: Expr) -> None:
        """Add the products of one K block."""

    @abstractmethod
    def add_word(self, k_word: Expr) -> None:
        """Add the products of the K values of one weight word."""

    def _each_word(self, k_block: Expr, step: Callable[[Expr], None]) -> None:
        """step(k_word) for the words of a K block."""
        per_block = self.layout.block_words(self.tile.kc)
        k_loop(k_block * per_block, per_block, self.layout.k_words, self.tile.k_unroll, step)

    def _each_group(self, k_block: Expr, step: Callable[[Expr], None]) -> None:
        """step(group) for the groups of a K block."""
        per_group = self.layout.group_words
        per_block = self.layout.block_words(self.tile.kc) // per_group
        unroll = max(1, self.tile.k_unroll // per_group)
        k_loop(k_block * per_block, per_block, self.layout.num_groups, unroll, step)

    def _each_word_of(self, group: Expr, step: Callable[[Expr], None], at_once: int = 1) -> None:
        """step(k_word) for every `at_once`th word of a group."""
        words = self.layout.group_words // at_once
        unroll = max(1, self.tile.k_unroll // at_once)
        total = words * self.layout.num_groups
        k_loop(group * words, words, total, unroll, lambda run: step(run * at_once))


class Accumulators:
    """A register tile of vectors of `dtype`, `rows` x `num_vectors`.

    Each row is a buffer of its own: TVM leaves small buffers on the stack, where LLVM makes
    registers of them, and asks the heap for large ones.
    """

    def __init__(self, kit: Kit, rows: int, num_vectors: int, dtype: str = "float32") -> None:
        self._kit, self._rows, self._num_vectors = kit, rows, num_vectors
        size = num_vectors * kit.lanes
        self._buffers = [T.alloc_buffer((size,), dtype) for _ in range(rows)]

    def load(self, value: Callable[[int, int], Expr]) -> None:
        """Set every vector (i, j) to `value(i, j)`."""
        for i in range(self._rows):
            for j in range(self._num_vectors):
                self._kit.store(self._buffers[i], (j * self._kit.lanes,), value(i, j))

    def clear(self) -> None:
        """Set every vector of floats to zero."""
        self.load(lambda i, j: self._kit.zeros())

    def row(self, i: int) -> list[Expr]:
        """The vectors of row i."""
        lanes = range(0, self._num_vectors * self._kit.lanes, self._kit.lanes)
        return [self._kit.load(self._buffers[i], at) for at in lanes]

    def add(self, i: int, vectors: Sequence[Expr]) -> None:
        """Add `vectors` to the first ones of row i."""
        self.update(i, vectors, lambda before, vector: before + vector)

    def update(self, i: int, vectors: Sequence[Expr], combine: Callable[..., Expr]) -> None:
        """Set each vector j of row i to combine(itself, vectors[j])."""
        for j, vector in enumerate(vectors):
            at = j * self._kit.lanes
            before = self._kit.load(self._buffers[i], at)
            self._kit.store(self._buffers[i], (at,), combine(before, vector))

    def add_products(self, i: int, a: Expr | Sequence[Expr], b: Sequence[Expr]) -> None:
        """Row i gains a times each vector of `b`; a is one vector for all, or one for each."""
        each = a if isinstance(a, Sequence) else [a] * len(b)
        terms = list(zip(each, b, strict=True))
        self.update(i, terms, lambda acc, term: self._kit.call("sw_mac_vector", acc, *term))

    def multiply(self, b: Sequence[Expr], a: Callable[[int], tuple[Expr, ...]]) -> None:
        """One K step: row i gains a(i) times each vector of `b`."""
        for i in range(self._rows):
            scalars = a(i)
            self.update(i, b, lambda acc, vector, a=scalars: self._kit.mac(acc, a, vector))


class IntegerChains:
    """A register tile of int32 sums in several sets that products go to in turn: a sum of few is
    not kept waiting by its own latency, and integers are exact in any order.
    """

    def __init__(self, kit: Kit, rows: int, num_vectors: int, chains: int) -> None:
        self._zero = T.broadcast(T.int32(0), kit.lanes)
        self._sets = [Accumulators(kit, rows, num_vectors, "int32") for _ in range(chains)]
        self._turns = [cycle(self._sets) for _ in range(rows)]

    def load(self, value: Callable[[int, int], Expr]) -> None:
        """Set every sum (i, j) to `value(i, j)`."""
        first, *others = self._sets
        first.load(value)
        for other in others:
            other.load(lambda i, j: self._zero)

    def row(self, i: int) -> list[Expr]:
        """The sums of row i."""
        total, *others = (sums.row(i) for sums in self._sets)
        for other in others:
            total = [a + b for a, b in zip(total, other, strict=True)]
        return total

    def update(self, i: int, vectors: Sequence[Expr], combine: Callable[..., Expr]) -> None:
        """Set each vector j of row i of the next set to combine(itself, vectors[j])."""
        next(self._turns[i]).update(i, vectors, combine)


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
