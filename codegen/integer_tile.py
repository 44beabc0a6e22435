"""Register tiles of int8 activations times int8 or int4 weights: dot products of bytes, in int32.

The sums of a group of K start from the activations' bias, which takes the offset of the weights'
codes back, so that integers are exact. With one scale per output channel they stay integers over
all of K; else the group's sum, scaled, is added to a second set of float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.kit import Expr, T
from codegen.operands import code_offset
from codegen.register_tile import Accumulators, IntegerChains, RegisterTile

FLIP_SIGNS = -0x7F7F7F80  # 0x80808080: u8 codes minus 128 are s8


class IntegerTile(RegisterTile):
    """int8 x int8 and int4 x int8, in their common part: the products of one weight word."""

    def __init__(self, *args: Expr) -> None:
        super().__init__(*args)
        shape = (self.place.rows, len(self.place.columns))
        self._sums = IntegerChains(self.kit, *shape, self.tile.chains)

    def _start(self, group: Expr) -> None:
        """Set the integer sums to the bias of `group`."""
        kit, place = self.kit, self.place
        zeros: list[Expr] = []
        if self.layout.format.has_zero_points:
            offset = code_offset(self.layout.format, kit.isa)
            for vector in self._of_group(self.w.zero_points, group):
                wide = T.cast(vector, f"int32x{kit.lanes}")
                base = self.layout.format.zero_code - offset
                zeros.append(T.bind(wide - T.broadcast(T.int32(base), kit.lanes)))
        biases = [T.bind(self.a.bias[place.row + i, group]) for i in range(place.rows)]

        def start(i: int, j: int) -> Expr:
            bias = T.broadcast(biases[i], kit.lanes)
            return bias * zeros[j] if zeros else bias

        self._sums.load(start)

    def add_word(self, k_word: Expr) -> None:
        vectors = self._words(k_word)
        if self.layout.format.dtype == "int4":
            mask = T.broadcast(T.int32(0x0F0F0F0F), self.kit.lanes)
            four = T.broadcast(T.int32(4), self.kit.lanes)
            low = [T.bind(v & mask) for v in vectors]
            high = [T.bind((v >> four) & mask) for v in vectors]
            self._add_quads("sw_dot_u4", low, k_word * 2)
            self._add_quads("sw_dot_u4", high, k_word * 2 + 1)
        elif self.kit.isa.has_u8_dot:
            self._add_quads("sw_dot_u8", vectors, k_word)
        else:
            flip = T.broadcast(T.int32(FLIP_SIGNS), self.kit.lanes)
            self._add_quads("sw_dot_s8", [T.bind(v ^ flip) for v in vectors], k_word)

    def _add_quads(self, dot: str, vectors: Sequence[Expr], a_word: Expr) -> None:
        for i in range(self.place.rows):
            a = T.bind(self.a.words[self.place.row + i, a_word])
            self._sums.update(i, vectors, lambda acc, w, a=a: self.kit.call(dot, acc, a, w))

    def _floats(self, i: int) -> list[Expr]:
        """The integer sums of row i as float32."""
        return [T.cast(v, f"float32x{self.kit.lanes}") for v in self._sums.row(i)]

    def _row_scale(self, i: int, group: Expr) -> Expr:
        return self.kit.splat(T.bind(self.a.scales[self.place.row + i, group]))


class ChannelTile(IntegerTile):
    """One scale per output channel: ((sum as float32) * the channel's scale) * the row's scale."""

    def clear(self) -> None:
        self._start(0)

    def restore(self, load: Callable[[int, int], Expr]) -> None:
        integers = f"int32x{self.kit.lanes}"
        self._sums.load(lambda i, j: T.reinterpret(integers, load(i, j)))

    def saved(self, i: int) -> list[Expr]:
        return [T.reinterpret(f"float32x{self.kit.lanes}", v) for v in self._sums.row(i)]

    def results(self, i: int) -> list[Expr]:
        row_scale = self._row_scale(i, 0)
        return [v * s * row_scale for v, s in zip(self._floats(i), self._scales(0), strict=True)]

    def multiply(self, k_block: Expr) -> None:
        self._each_word(k_block, self.add_word)


class GroupTile(IntegerTile):
    """A scale per group of K: sums of (a group's sum as float32) * its scale, in ascending order,
    then times the row's scale; where activations have scales per group, these are in the group's.
    """

    def __init__(self, *args: Expr) -> None:
        super().__init__(*args)
        self._totals = Accumulators(self.kit, self.place.rows, len(self.place.columns))
        self._has_group_scales = int(self.a.scales.shape[1]) > 1

    def clear(self) -> None:
        self._totals.clear()

    def restore(self, load: Callable[[int, int], Expr]) -> None:
        self._totals.load(load)

    def saved(self, i: int) -> list[Expr]:
        return self._totals.row(i)

    def results(self, i: int) -> list[Expr]:
        if self._has_group_scales:
            return self._totals.row(i)
        row_scale = self._row_scale(i, 0)
        return [total * row_scale for total in self._totals.row(i)]

    def multiply(self, k_block: Expr) -> None:
        self._each_group(k_block, self._add_group)

    def _add_group(self, group: Expr) -> None:
        words = self.layout.group_words
        self._start(group)
        for word in range(words):
            self.add_word(group * words + word)
        scales = self._scales(group)
        for i in range(self.place.rows):
            factors = scales
            if self._has_group_scales:
                row_scale = self._row_scale(i, group)
                factors = [scale * row_scale for scale in scales]
            terms = list(zip(self._floats(i), factors, strict=True))
            self._totals.update(i, terms, lambda acc, t: self.kit.call("sw_mac_vector", acc, *t))
