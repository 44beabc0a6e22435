"""Register tiles of int8 or int4 weights times float activations: codes minus their zero point
become bf16 pairs, or float32 where the ISA does not multiply bf16. Both are exact.

Weights are widened in registers, or a K block of a panel once into a scratch of the core, which
many rows then multiply. The arithmetic is the same: sums of products with unscaled weights, which
one scale ends or, group by group, scaled terms add up to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.gemm.register_tile import Accumulators, PanelReader, RegisterTile, k_loop
from codegen.kit import Expr, Kit, T
from codegen.layout.panels import PanelLayout
from codegen.spec import GemmTile


def words_per_word(kit: Kit, layout: PanelLayout) -> int:
    """Words of activations, and of widened weights, that one word of codes meets."""
    return layout.kr // kit.act_kr


def alloc_widened(kit: Kit, layout: PanelLayout, tile: GemmTile) -> Expr:
    """Memory for one K block of a panel, widened."""
    words = layout.block_words(tile.kc) * words_per_word(kit, layout) * layout.panel
    return T.alloc_buffer((words,), kit.act_dtype)


class Widening(PanelReader):
    """Widened weights out of packed codes."""

    def zeros(self, group: Expr) -> list[Expr]:
        """The zero points of a group as int32 vectors, those of signed bytes minus 128; none for a
        symmetric format.
        """
        weights, lanes = self.layout.format, self.kit.lanes
        if not weights.has_zero_points:
            return []
        base = T.broadcast(T.int32(128 if weights.dtype == "int8" else 0), lanes)
        vectors = self._of_group(self.w.zero_points, group)
        return [T.bind(T.cast(v, f"int32x{lanes}") - base) for v in vectors]

    def vectors(self, k_word: Expr, zeros: Sequence[Expr]) -> list[list[Expr]]:
        """The tile's vectors for each word of activations that one word of codes meets."""
        words = self._words(k_word)
        widen = self._pairs if self.kit.has_dot else self._floats
        each = [widen(w, zeros[j] if zeros else None) for j, w in enumerate(words)]
        return [[T.bind(vector) for vector in step] for step in zip(*each, strict=True)]

    def _splat(self, value: int) -> Expr:
        return T.broadcast(T.int32(value), self.kit.lanes)

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

    def to_scratch(self, k_block: Expr, scratch: Expr) -> None:
        """Write a K block of all the panel's columns into `scratch`, words of activations first."""
        layout, lanes, width = self.layout, self.kit.lanes, self.place.num_vectors * self.kit.lanes
        per_word, per_block = words_per_word(self.kit, layout), layout.block_words(self.tile.kc)

        def widen(k_word: Expr) -> None:
            steps = self.vectors(k_word, self.zeros(k_word // layout.group_words))
            for step, vectors in enumerate(steps):
                row = (k_word - k_block * per_block) * per_word + step
                for j, vector in zip(self.place.columns, vectors, strict=True):
                    self.kit.store(scratch, (row * width + j * lanes,), vector)

        k_loop(k_block * per_block, per_block, layout.k_words, 1, widen)


class WidenedTile(RegisterTile):
    """Weights with one scale per channel, or per group; `scratch` holds the K block widened."""

    def __init__(self, *args: Expr, scratch: Expr | None = None) -> None:
        super().__init__(*args)
        self._scratch = scratch
        self._codes = Widening(self.kit, self.layout, self.tile, self.w, self.place)
        self._per_word = words_per_word(self.kit, self.layout)
        shape = (self.place.rows, len(self.place.columns))
        self._sums = Accumulators(self.kit, *shape)
        self._totals = Accumulators(self.kit, *shape) if self.layout.format.group else self._sums

    def clear(self) -> None:
        self._totals.clear()

    def restore(self, load: Callable[[int, int], Expr]) -> None:
        self._totals.load(load)

    def saved(self, i: int) -> list[Expr]:
        return self._totals.row(i)

    def results(self, i: int) -> list[Expr]:
        if self.layout.format.group:
            return self._totals.row(i)
        return [v * s for v, s in zip(self._sums.row(i), self._scales(0), strict=True)]

    def multiply(self, k_block: Expr) -> None:
        if self.layout.format.group:
            self._each_group(k_block, lambda group: self._add_group(k_block, group))
            return
        zeros = [] if self._scratch is not None else self._codes.zeros(0)
        self._each_word(k_block, lambda k_word: self._add(k_block, k_word, zeros))

    def add_word(self, k_word: Expr) -> None:
        self._add(0, k_word, self._codes.zeros(k_word // self.layout.group_words))

    def _add_group(self, k_block: Expr, group: Expr) -> None:
        words = self.layout.group_words
        self._sums.clear()
        zeros = [] if self._scratch is not None else self._codes.zeros(group)
        for word in range(words):
            self._add(k_block, group * words + word, zeros)
        scales = self._scales(group)
        for i in range(self.place.rows):
            terms = list(zip(self._sums.row(i), scales, strict=True))
            self._totals.update(i, terms, lambda acc, t: self.kit.call("sw_mac_vector", acc, *t))

    def _add(self, k_block: Expr, k_word: Expr, zeros: Sequence[Expr]) -> None:
        """Add the products of one word of codes."""
        if self._scratch is None:
            steps = self._codes.vectors(k_word, zeros)
        else:
            steps = [self._from_scratch(k_block, k_word, step) for step in range(self._per_word)]
        name = "sw_mac_bf16" if self.kit.has_dot else "sw_mac_f32"
        for step, vectors in enumerate(steps):
            at = k_word * self._per_word + step
            for i in range(self.place.rows):
                a = T.bind(self.a.words[self.place.row + i, at])
                self._sums.update(i, vectors, lambda acc, w, a=a: self.kit.call(name, acc, a, w))

    def _from_scratch(self, k_block: Expr, k_word: Expr, step: int) -> list[Expr]:
        first = k_block * self.layout.block_words(self.tile.kc)
        at = T.bind(((k_word - first) * self._per_word + step) * self._width + self._shift)
        lanes = self.kit.lanes
        return [T.bind(self.kit.load(self._scratch, at + j * lanes)) for j in self.place.columns]
