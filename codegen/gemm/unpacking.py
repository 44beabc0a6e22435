"""What products take, out of packed words of weights: `steps` vectors for each word, in ascending
order of K.

Words are unpacked in registers, for every register tile anew, or a K block of a panel once into a
scratch of the core, which many rows then multiply: there a register tile finds its vectors side by
side. Either is exact, so both give the same bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

from codegen.gemm.amx_tile import has_tiles
from codegen.gemm.register_tile import PanelReader, Place, Weights, k_loop
from codegen.kit import Expr, Kit, T
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile

BYTES_OF_PAIRS = 0x00FF00FF
NIBBLES = 0x0F0F0F0F
FLIP_SIGNS = -0x7F7F7F80  # 0x80808080: u8 codes minus 128 are s8


class Unpacking(PanelReader, ABC):
    """The operands of one format, from the scratch if there is one."""

    def __init__(
        self,
        kit: Kit,
        layout: PanelLayout,
        tile: GemmTile,
        w: Weights,
        place: Place,
        scratch: Expr | None = None,
    ) -> None:
        super().__init__(kit, layout, tile, w, place)
        self._scratch = scratch

    @staticmethod
    @abstractmethod
    def steps(kit: Kit, layout: PanelLayout) -> int:
        """Words of activations, and vectors of operands, that one packed word meets."""

    @abstractmethod
    def _unpack(self, k_word: Expr) -> list[list[Expr]]:
        """The tile's vectors for each step."""

    def begin(self, group: Expr) -> None:
        """Load what all words of a group of K need to be unpacked."""

    def vectors(self, k_block: Expr, k_word: Expr) -> list[list[Expr]]:
        """The tile's vectors for each step of a word of a K block that has begun."""
        steps = self.steps(self.kit, self.layout)
        if self._scratch is None:
            return [[T.bind(vector) for vector in step] for step in self._unpack(k_word)]
        per_block = self.layout.block_words(self.tile.kc)
        lanes, width = self.kit.lanes, len(self.place.columns)
        found = []
        for step in range(steps):
            row = (k_word - k_block * per_block) * steps + step
            at = T.bind((self.place.before * per_block * steps + row * width) * lanes)
            found.append(
                [T.bind(self.kit.load(self._scratch, at + i * lanes)) for i in range(width)]
            )
        return found

    def to_scratch(self, k_block: Expr, scratch: Expr, tiles: Sequence[Sequence[int]]) -> None:
        """Write a K block of the panel into `scratch`: its tiles, which are vectors of the place,
        one after the other, each step by step.
        """
        layout, lanes = self.layout, self.kit.lanes
        steps, per_block = self.steps(self.kit, layout), layout.block_words(self.tile.kc)
        befores = accumulate((len(tile) for tile in tiles), initial=0)
        # of each vector: that of its tile's first row, the tile's width, its place in there
        homes = {
            j: (before * per_block * steps, len(tile), i)
            for before, tile in zip(befores, tiles, strict=False)
            for i, j in enumerate(tile)
        }

        def unpack(k_word: Expr) -> None:
            self.begin(k_word // layout.group_words)
            for step, vectors in enumerate(self._unpack(k_word)):
                row = (k_word - k_block * per_block) * steps + step
                for j, vector in zip(self.place.columns, vectors, strict=True):
                    first, width, i = homes[j]
                    self.kit.store(scratch, ((first + row * width + i) * lanes,), vector)

        k_loop(k_block * per_block, per_block, layout.k_words, 1, unpack)

    def _splat(self, value: int) -> Expr:
        return T.broadcast(T.int32(value), self.kit.lanes)


class PlainWords(Unpacking):
    """float32 as it is; bf16 as pairs where the ISA multiplies them, else as two float32."""

    @staticmethod
    def steps(kit: Kit, layout: PanelLayout) -> int:
        return layout.kr // kit.act_kr

    def _unpack(self, k_word: Expr) -> list[list[Expr]]:
        words, kit = self._words(k_word), self.kit
        if self.steps(kit, self.layout) == 1:
            return [words]
        return [[kit.call(half, w) for w in words] for half in ("sw_bf16_lo", "sw_bf16_hi")]


class FloatsOfCodes(Unpacking):
    """Codes minus their zero point: bf16 pairs where the ISA multiplies them, else float32."""

    _zeros: Sequence[Expr] = ()

    @staticmethod
    def steps(kit: Kit, layout: PanelLayout) -> int:
        return layout.kr // kit.act_kr

    def begin(self, group: Expr) -> None:
        """The zero points of a group as int32 vectors, those of signed bytes minus 128; none for a
        symmetric format, nor where they are in the scratch already. With minima they are zero.
        """
        weights, lanes = self.layout.format, self.kit.lanes
        if self._scratch is not None:
            return
        base = self._splat(128 if weights.dtype == "int8" else 0)
        if weights.has_minima:
            self._zeros = [self._splat(0) - base] * len(self.place.columns)
        if not weights.has_zero_points:
            return
        vectors = self._of_group(self.w.zero_points, group)
        self._zeros = [T.bind(T.cast(v, f"int32x{lanes}") - base) for v in vectors]

    def _unpack(self, k_word: Expr) -> list[list[Expr]]:
        words = self._words(k_word)
        widen = self._pairs if self.kit.has_dot else self._floats
        each = [widen(w, self._zeros[j] if self._zeros else None) for j, w in enumerate(words)]
        return [list(step) for step in zip(*each, strict=True)]

    def _pairs(self, word: Expr, zero: Expr | None) -> list[Expr]:
        kit = self.kit
        if self.layout.format.dtype == "int8":
            if zero is None:
                return [kit.call("sw_s8_bf16", word)]
            return [kit.call("sw_pair_bf16", *self._floats(word, zero))]
        shifted = [word >> self._splat(shift) for shift in (0, 4, 8, 12)]
        if zero is None:
            return [kit.call("sw_four_bits_bf16", w) for w in shifted]
        bias = T.bind((self._splat(16) - zero) * self._splat(0x10001))
        mask = self._splat(0x000F000F)
        return [kit.call("sw_five_bits_bf16", (w & mask) + bias) for w in shifted]

    def _floats(self, word: Expr, zero: Expr | None) -> list[Expr]:
        lanes = self.kit.lanes
        if self.layout.format.dtype == "int8":
            wide = T.bind(T.cast(word, f"int32x{lanes}"))
            integers = [(wide << self._splat(24)) >> self._splat(24), wide >> self._splat(8)]
        else:
            shifts = [4 * place + 16 * half for place in range(4) for half in range(2)]
            integers = [(word >> self._splat(shift)) & self._splat(15) for shift in shifts]
            zero = self._splat(8) if zero is None else zero
        centred = integers if zero is None else [value - zero for value in integers]
        return [T.cast(value, f"float32x{lanes}") for value in centred]


class IntegersOfCodes(Unpacking):
    """Codes as the ISA's integer products take them: bytes, or pairs of 16 bits each."""

    @staticmethod
    def steps(kit: Kit, layout: PanelLayout) -> int:
        is_pairs = layout.format.dtype == "int8" and kit.isa.multiplies_pairs
        return 2 if is_pairs or layout.format.dtype == "int4" else 1

    @property
    def product(self) -> str:
        """The intrinsic that adds a product of these operands to int32 sums."""
        if self.layout.format.dtype == "int4":
            return "sw_dot_u4"
        isa = self.kit.isa
        return "sw_dot_u8" if isa.has_u8_dot else "sw_dot_s8" if isa.has_s8_dot else "sw_dot_pairs"

    def _unpack(self, k_word: Expr) -> list[list[Expr]]:
        words = self._words(k_word)
        if self.product == "sw_dot_u4":
            mask, four = self._splat(NIBBLES), self._splat(4)
            return [[w & mask for w in words], [(w >> four) & mask for w in words]]
        if self.product == "sw_dot_pairs":
            even = self._splat(BYTES_OF_PAIRS)
            return [[w & even for w in words], [self.kit.call("sw_odd_bytes", w) for w in words]]
        if self.product == "sw_dot_s8":
            return [[w ^ self._splat(FLIP_SIGNS) for w in words]]
        return [words]


def unpacking_of(layout: PanelLayout) -> type[Unpacking]:
    """How the words of a layout are unpacked."""
    weights = layout.format
    if weights.has_int8_activations:
        return IntegersOfCodes
    return FloatsOfCodes if weights.is_quantized else PlainWords


def alloc_unpacked(kit: Kit, layout: PanelLayout, tile: GemmTile) -> Expr | None:
    """Memory for one K block of a panel, if the tile asks for it; never for tiles of AMX."""
    if not tile.is_widened or has_tiles(kit.isa, layout.format):
        return None
    unpacking = unpacking_of(layout)
    steps = unpacking.steps(kit, layout)
    dtype = "int32" if unpacking is IntegersOfCodes else kit.act_dtype
    return T.alloc_buffer((layout.block_words(tile.kc) * steps * layout.panel,), dtype)
