"""The tiles worth trying for a GEMM: what fits registers and caches, the likeliest first.

A small analytic prior orders them; it knows of register tiles, not of any one CPU. Illegal tiles
are never made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from codegen.layout.panels import PanelLayout
from codegen.spec import BLOCK_ASPECT, LOOP_ORDERS, GemmTile
from platforms.isa import IsaRow

MAX_MR = 24
K_UNROLLS = (1, 2, 4, 8, 16)
K_BLOCKS = (512, 1024, 2048, 4096, 8192)
PREFETCHES = (0, 512, 1024, 2048, 4096, 8192)
BLOCK_PREFETCHES = (0, 1, 2, 3, 4)
BLOCK_PREFETCH_ROWS = 64  # beyond them multiplying a K block takes far longer than reading the next
CHAINS = (1, 2, 4)
# Dimensions where no value is nearer than another.
_UNORDERED = ("prefetch_bytes", "block_prefetch", "order")
# Multiply-adds in the code of a nest, beyond which compiling takes seconds.
MAX_CODE = 4000
# The prior's core: multiply-adds that start in a cycle, cycles until one is done, loads in a cycle.
# Every core with wide vectors is near enough to this to rank tiles by it.
_MACS, _LATENCY, _LOADS = 1.0, 5.0, 2.0
_TURN = 1.0  # cycles of a turn of the K loop beside its multiply-adds
_WIDEN, _STORE = 2.0, 1.0  # cycles for a vector of weights that floats meet, and for keeping it


@dataclass(frozen=True)
class TileSpace:
    """All tiles of one GEMM of `rows` rows.

    l2_bytes: of the cache of one core that keeps a K block, 0 if it is not known. in_halves: as in
    codegen.gemm.nest.Gemm; such tiles have an even number of vectors. num_cores: that share it.
    """

    isa: IsaRow
    layout: PanelLayout
    rows: int
    l2_bytes: int
    in_halves: bool = False
    num_cores: int = 1

    @property
    def num_vectors(self) -> int:
        """Vectors of a whole panel."""
        return self.layout.panel // self.layout.lanes

    def width(self, tile: GemmTile) -> int:
        """Vectors of a register tile."""
        return min(tile.nv or self.num_vectors, self.num_vectors)

    def registers(self, tile: GemmTile) -> int:
        """Vector registers that a tile keeps busy: sums, weights, and what it takes to unpack them.

        Formats whose groups have scales of their own sum twice, inside a group and over groups.
        """
        weights = self.layout.format
        nv = self.width(tile)
        sets = 2 if self._has_short_sums else tile.chains + (weights.group > 0)
        rows = min(tile.mr, self.rows)
        sums, held = rows * nv * sets, nv if rows > 1 else 1  # one row meets vectors as they come
        if tile.is_widened or not (self._is_unpacked or self._is_flipped):
            return sums + held + 1
        # the two steps of a word of bytes come one after the other
        is_pairs = weights.dtype == "int8" and weights.has_int8_activations
        return sums + (held + 2 if is_pairs else 2 * held + 2)

    @property
    def _has_short_sums(self) -> bool:
        """Whether sums of 16 bits are kept beside the others."""
        weights = self.layout.format
        is_short = weights.dtype == "int4" and self.isa.has_short_sums
        return is_short and weights.has_int8_activations

    @property
    def _is_flipped(self) -> bool:
        """Whether int8 weights are made signed before they are multiplied."""
        weights = self.layout.format
        is_signed = self.isa.has_s8_dot and not self.isa.has_u8_dot
        return weights.dtype == "int8" and weights.has_int8_activations and is_signed

    def _fits_registers(self, tile: GemmTile) -> bool:
        return self.registers(tile) <= self.isa.num_vector_registers

    def is_legal(self, tile: GemmTile, known: GemmTile | None = None) -> bool:
        """Whether the tile fits: no register spilled, or no more than by `known`, no K block beyond
        the cache, no endless code, and nothing that another tile already says.
        """
        layout = self.layout
        nv = self.width(tile)
        fits = self._fits_registers(tile)
        if not fits and (known is None or self.registers(tile) > self.registers(known)):
            return False
        if tile.mr > max(self.rows, 1):
            return False
        if tile.nv >= self.num_vectors or (self.in_halves and nv % 2):
            return False
        if tile.kc >= layout.k or (tile.kc and layout.block_words(tile.kc) * layout.kr != tile.kc):
            return False
        if tile.k_unroll > min(layout.block_words(tile.kc), layout.group_words):
            return False
        if tile.is_widened and not (self.can_widen and self.rows > tile.mr):
            return False
        if tile.chains > 1 and not self._has_chains(tile):
            return False
        if tile.order != "panels" and not self._has_order(tile):
            return False
        if tile.row_parts > 1 and (
            self.num_cores % tile.row_parts or self.rows < tile.mr * tile.row_parts
        ):
            return False
        if tile.block_prefetch and layout.num_k_blocks(tile.kc) == 1:
            return False
        column_tiles = -(-self.num_vectors // nv)
        code = tile.mr * (tile.mr + 1) // 2 * nv * column_tiles * (tile.k_unroll + 1)
        is_read_again = self.rows > tile.mr or column_tiles > 1 or tile.block_prefetch > 0
        return code <= MAX_CODE and (not is_read_again or self._fits_cache(tile))

    @property
    def can_widen(self) -> bool:
        """Whether a block of words can be unpacked once for all rows: where they have to be before
        they are multiplied, and float32, whose tiles then lie side by side.
        """
        return self._is_unpacked or self.layout.format.dtype == "float32"

    @property
    def _is_unpacked(self) -> bool:
        """Whether products take other words than those that are packed."""
        weights = self.layout.format
        if weights.has_int8_activations:
            return weights.dtype == "int4" or self.isa.multiplies_pairs
        is_pairs = weights.dtype == "bfloat16" and not self.isa.has_bf16_dot
        return weights.is_quantized or is_pairs

    @property
    def _act_bytes(self) -> int:
        """Bytes of a value of A."""
        weights = self.layout.format
        if weights.has_int8_activations:
            return 2 if weights.dtype == "int8" and self.isa.multiplies_pairs else 1
        return 2 if weights.dtype != "float32" and self.isa.has_bf16_dot else 4

    def _has_chains(self, tile: GemmTile) -> bool:
        """Whether more chains can matter: half as many sums would wait for each other, and there
        are products for all of them in a turn of the K loop.
        """
        weights = self.layout.format
        sums = min(tile.mr, self.rows) * self.width(tile) * tile.chains
        words = self.layout.group_words if weights.group else tile.k_unroll
        per_word = 2 if weights.dtype == "int4" else 1
        return (
            weights.has_int8_activations
            and not self._has_short_sums
            and sums < 2 * _LATENCY * _MACS
            and tile.chains <= words * per_word
        )

    def _has_order(self, tile: GemmTile) -> bool:
        """Whether the order of the tiles can matter: several blocks of rows and panels, and A does
        not stay in the cache. What is done once for a panel and all rows would be done again.
        """
        layout, rows = self.layout, self.rows // tile.row_parts
        a_bytes = rows * layout.k * self._act_bytes
        return (
            rows > BLOCK_ASPECT * layout.panel
            and layout.num_panels > self.num_cores
            and not (tile.is_widened or tile.block_prefetch)
            and (not self.l2_bytes or a_bytes > self.l2_bytes // 2)
        )

    def _fits_cache(self, tile: GemmTile) -> bool:
        """Whether the K block of a panel stays in L2 until the last row has used it, and beside it
        the next one if it is prefetched, and what it is widened to.
        """
        layout = self.layout
        words = layout.block_words(tile.kc) * layout.panel
        nbytes = words * layout.word_dtype.itemsize * (2 if tile.block_prefetch else 1)
        if tile.is_widened:
            nbytes += words * layout.kr * self._act_bytes
        return not self.l2_bytes or nbytes <= self.l2_bytes // 2 or tile.kc == K_BLOCKS[0]

    def cost(self, tile: GemmTile) -> float:
        """Cycles of the prior for a word of K, one panel and all rows; ratios alone count."""
        full, tail = divmod(self.rows, tile.mr)
        heights = [(full, tile.mr), (1 if tail else 0, tail)]
        nv = self.width(tile)
        tiles = -(-self.num_vectors // nv)
        cycles = 0.0
        for count, height in heights:
            macs, loads = height * nv / _MACS, (height + nv) / _LOADS
            busy = max(macs, loads, _LATENCY / tile.chains)
            unpacked = nv * _WIDEN if self._is_unpacked and not tile.is_widened else 0.0
            cycles += count * tiles * (busy + unpacked + _TURN / tile.k_unroll)
        cycles += self.num_vectors * (_WIDEN + _STORE) * tile.is_widened
        blocks = self.layout.num_k_blocks(tile.kc)
        spilled = 2 * self.rows * self.num_vectors / _LOADS  # partial sums out and in again
        return cycles + (blocks - 1) * spilled / self.layout.block_words(tile.kc)

    def start(self, tile: GemmTile) -> GemmTile:
        """A legal tile as near to `tile` as cutting goes: what tuning starts from."""
        mr = min(tile.mr, self.rows)
        kc = 0 if tile.kc >= self.layout.k else tile.kc
        nv = 0 if tile.nv >= self.num_vectors else tile.nv
        is_cut = self.layout.num_k_blocks(kc) > 1
        return replace(
            tile, mr=mr, kc=kc, nv=nv, block_prefetch=tile.block_prefetch if is_cut else 0
        )

    def in_blocks(self, tile: GemmTile) -> GemmTile:
        """What a tile that fetches the next K block comes to where K is one block: one of blocks so
        small that there is a next one.
        """
        shorter = [kc for kc in K_BLOCKS if kc < self.layout.k]
        if not (tile.block_prefetch and shorter) or self.layout.num_k_blocks(tile.kc) > 1:
            return tile
        return replace(tile, kc=max(shorter))

    def in_pairs(self, tile: GemmTile) -> GemmTile:
        """What a tile of an odd number of vectors comes to in halves: of one more, and of so few
        rows that it fits the registers.
        """
        if not (self.in_halves and tile.nv % 2):
            return tile
        wide = replace(tile, nv=tile.nv + 1)
        lower = (replace(wide, mr=mr) for mr in range(tile.mr, 1, -1))
        return next(filter(self._fits_registers, lower), replace(wide, mr=1))

    def micro_kernels(self) -> list[GemmTile]:
        """Register tiles with every K unroll, the likeliest first; blocks of K as the cache wants
        them, and no prefetch.
        """
        values = self._dimensions()
        kernels = [
            GemmTile(mr, 0, k_unroll, 0, nv, is_widened, chains=chains)
            for mr in values["mr"]
            for nv in reversed(values["nv"])
            for k_unroll in values["k_unroll"]
            for is_widened in values["is_widened"]
            for chains in values["chains"]
        ]
        found = [tile for kernel in kernels if self.is_legal(tile := self._blocked(kernel))]
        return sorted(found, key=self.cost)

    def _dimensions(self) -> dict[str, tuple[Any, ...]]:
        """The values of every dimension that can matter here, the ones to try first in front."""
        is_integer = self.layout.format.has_int8_activations
        return {
            "is_widened": (False, True) if self.can_widen else (False,),
            "row_parts": self._row_parts(),
            "order": LOOP_ORDERS,
            "block_prefetch": BLOCK_PREFETCHES if self.rows <= BLOCK_PREFETCH_ROWS else (0,),
            "prefetch_bytes": PREFETCHES,
            "chains": CHAINS if is_integer else (1,),
            "k_unroll": K_UNROLLS,
            "kc": (*(kc for kc in K_BLOCKS if kc < self.layout.k), 0),
            "mr": tuple(range(1, min(MAX_MR, self.rows) + 1)),
            "nv": (*(nv for nv in (1, 2, 3) if nv < self.num_vectors), 0),
        }

    def _row_parts(self) -> tuple[int, ...]:
        """Parts of M; more than one only where cores would have no panel, or unequally many."""
        if self.layout.num_panels % self.num_cores == 0:
            return (1,)
        return tuple(n for n in range(1, self.num_cores + 1) if self.num_cores % n == 0)

    def _blocked(self, tile: GemmTile) -> GemmTile:
        """The tile with the largest K block that makes it legal, or as it is if none does."""
        tiles = [replace(tile, kc=kc) for kc in (0, *reversed(K_BLOCKS))]
        return next((tile for tile in tiles if self.is_legal(tile)), tile)

    def moves(self, tile: GemmTile) -> list[GemmTile]:
        """The legal tiles one step away in one dimension, those that matter most first; prefetching
        the next K block comes and goes with the blocks. Defaults may spill a little where it pays,
        and so may what is beside them.
        """
        around: list[GemmTile] = []
        for field, values in self._dimensions().items():
            near = values if field in _UNORDERED else _beside(getattr(tile, field), values)
            changes: list[dict[str, Any]] = [{field: value} for value in near]
            around += [self._with_next_block(replace(tile, **change), field) for change in changes]
        return [
            move for move in dict.fromkeys(around) if move != tile and self.is_legal(move, tile)
        ]

    def _with_next_block(self, move: GemmTile, field: str) -> GemmTile:
        """A move that would prefetch the next K block where there is none cuts K for it, or, if the
        blocks are what it changes, prefetches none.
        """
        if not move.block_prefetch or self.layout.num_k_blocks(move.kc) > 1:
            return move
        return replace(move, block_prefetch=0) if field == "kc" else self._blocked(move)


def _beside(value: int, values: tuple[int, ...]) -> Iterator[int]:
    """The neighbours of `value` in an ordered list, or the two around it if it is not in there."""
    if value in values:
        at = values.index(value)
        yield from values[max(0, at - 1) : at]
        yield from values[at + 1 : at + 2]
        return
    yield from [v for v in values if 0 < v < value][-1:]
    yield from [v for v in values if v > value][:1]
