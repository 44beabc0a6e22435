"""Register tiles of AMX: blocks of 32 rows x 2 vectors, where weights and activations are pairs of
bf16, or bytes with one scale per output channel.

A block's sums pass through a scratch in memory, so that what a format does before and after its
products is done by its own register tile (codegen.gemm.register_tile), row by row. That tile also
adds the words of K that do not fill a step of 16.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.gemm.register_tile import Activations, Place, RegisterTile, Weights
from codegen.intrinsics.amx import (
    TILE_ROWS,
    TILE_WORDS,
    columns_tile,
    product_tile,
    rows_tile,
)
from codegen.kit import Expr, Kit, T
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile, WeightFormat
from platforms.isa import IsaRow

BLOCK_VECTORS = 2
BLOCK_ROWS = 2 * TILE_ROWS
SCRATCH_WIDTH = BLOCK_VECTORS * TILE_WORDS
_WORD_BYTES = 4


def has_tiles(isa: IsaRow, weights: WeightFormat) -> bool:
    """Whether products of that format are AMX's: groups of K are shorter than a step of it."""
    if weights.has_int8_activations:
        return isa.has_amx and weights.dtype == "int8" and not weights.group
    return isa.has_amx and weights.dtype == "bfloat16"


def alloc_scratch() -> Expr:
    """Memory for the sums of one block."""
    return T.alloc_buffer((BLOCK_ROWS * SCRATCH_WIDTH,), "float32")


@dataclass(frozen=True)
class AmxBlock:
    """One block at `place`, of up to BLOCK_ROWS rows (place.rows is not a number here) and as many
    as BLOCK_VECTORS columns.

    Call `put` for every row, then `multiply`, then `take` for every row.
    """

    kit: Kit
    layout: PanelLayout
    tile: GemmTile
    a: Activations
    w: Weights
    place: Place
    scratch: Expr

    def put(self, i: Expr, row: RegisterTile) -> None:
        """The sums of the tile of row i are those to begin with."""
        for j, vector in enumerate(row.saved(0)):
            self.kit.store(self.scratch, (self._at(i, j),), vector)

    def multiply(self, k_block: Expr) -> None:
        """Add the products of the whole steps of a K block."""
        rows = self.place.rows
        low, high = T.min(rows, TILE_ROWS), T.max(rows - TILE_ROWS, 1)  # no tile may be empty
        _run("sw_tile_config", low, high)
        with T.If(rows > TILE_ROWS):
            with T.Then():
                self._multiply(k_block, 2)
            with T.Else():
                self._multiply(k_block, 1)
        _run("sw_tile_release")

    def take(self, i: Expr, row: RegisterTile, k_block: Expr) -> None:
        """Give the sums after `multiply` to the tile of row i; add what is left of the K block."""
        row.restore(lambda _, j: self.kit.load(self.scratch, self._at(i, j)))
        begin, count, is_whole = self._words_of(k_block)
        if not is_whole:
            with T.serial(count // TILE_WORDS * TILE_WORDS, count) as k_word:
                row.add_word(begin + k_word)

    def _at(self, i: Expr, j: int) -> Expr:
        return i * SCRATCH_WIDTH + j * TILE_WORDS

    def _words_of(self, k_block: Expr) -> tuple[Expr, Expr, bool]:
        """First word, number of words, and whether every block is of whole steps."""
        per_block, total = self.layout.block_words(self.tile.kc), self.layout.k_words
        assert per_block % TILE_WORDS == 0 or per_block >= total, (per_block, self.layout)
        begin = k_block * per_block
        if total % per_block == 0:
            return begin, per_block, per_block % TILE_WORDS == 0
        return begin, T.min(per_block, total - begin), total % TILE_WORDS == 0

    def _multiply(self, k_block: Expr, num_rows: int) -> None:
        """The steps of `num_rows` tiles of rows."""
        kit, place = self.kit, self.place
        columns = range(len(place.columns))
        width = place.num_vectors * kit.lanes
        first = T.cast(place.panel, "int64") * (self.layout.panel * self.layout.k_words)
        blocks = [(i, j) for i in range(num_rows) for j in columns]
        begin, count, _ = self._words_of(k_block)

        def move(verb: str) -> None:
            for i, j in blocks:
                address = T.address_of(self.scratch[self._at(i * TILE_ROWS, j)])
                _run(f"sw_tile_{verb}_{product_tile(i, j)}", address, _stride(SCRATCH_WIDTH))

        move("load")
        with T.serial(0, count // TILE_WORDS) as step:
            k_word = T.bind(begin + step * TILE_WORDS)
            at = T.bind(first + T.cast(k_word, "int64") * width)
            if self.tile.prefetch_bytes:
                self._prefetch(at, width)
            for i in range(num_rows):
                address = T.address_of(self.a.words[place.row + i * TILE_ROWS, k_word])
                row_words = int(self.a.words.shape[1])
                _run(f"sw_tile_load_{rows_tile(i)}", address, _stride(row_words))
            for j in columns:
                word = self.w.at(at + place.columns[j] * kit.lanes)
                address = T.address_of(self.w.words[word])
                _run(f"sw_tile_load_{columns_tile(j)}", address, _stride(width))
            kind = "u8" if self.layout.format.has_int8_activations else "bf16"
            for i, j in blocks:
                _run(f"sw_tile_dot_{kind}_{product_tile(i, j)}")
        move("store")

    def _prefetch(self, at: Expr, width: int) -> None:
        """Ask for the cache lines of one step, a row of a tile each."""
        for row in range(TILE_WORDS):
            for column in self.place.columns:
                line = (row * width + column * self.kit.lanes) * _WORD_BYTES
                ahead = self.tile.prefetch_bytes + line
                self.kit.prefetch(self.w.words, *self.w.at(at), ahead_bytes=ahead)


def _stride(words: int) -> Expr:
    return T.int64(words * _WORD_BYTES)


def _run(name: str, *arguments: Expr) -> None:
    T.evaluate(T.call_extern("int32", name, *arguments))
