"""Register tiles of int8 activations times int8 or int4 weights: dot products of bytes, in int32.

The sums of a group of K start from the activations' bias, which takes the offset of the weights'
codes back, so that integers are exact. With one scale per output channel they stay integers over
all of K; else the group's sum, scaled, is added to a second set of float32 sums. A group's sum is
then added to the bits of a float32 whose last bit is worth the activations' scale (see
codegen.layout.operands.Int8Rows), so that it becomes a scaled float32 in one subtraction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from codegen.gemm.register_tile import Accumulators, IntegerChains, RegisterTile
from codegen.kit import Expr, T
from codegen.layout.operands import code_offset

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
            return self._of_zero_point(i, group, bias * zeros[j]) if zeros else bias

        self._sums.load(start)

    def _of_zero_point(self, i: int, group: Expr, bias: Expr) -> Expr:
        """What the sums of row i start from where a zero point is in `bias`."""
        return bias

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
        row_scale = self.kit.splat(T.bind(self.a.scales[self.place.row + i, 0]))
        floats = [T.cast(v, f"float32x{self.kit.lanes}") for v in self._sums.row(i)]
        return [v * scale * row_scale for v, scale in zip(floats, self._scales(0), strict=True)]

    def multiply(self, k_block: Expr) -> None:
        self._each_word(k_block, self.add_word)


class GroupTile(IntegerTile):
    """A scale per group of K, here and in the activations: sums of (a group's sum as float32, times
    the activations' scale) * its scale, in ascending order.
    """

    def __init__(self, *args: Expr) -> None:
        super().__init__(*args)
        self._totals = Accumulators(self.kit, self.place.rows, len(self.place.columns))

    def clear(self) -> None:
        self._totals.clear()

    def restore(self, load: Callable[[int, int], Expr]) -> None:
        self._totals.load(load)

    def saved(self, i: int) -> list[Expr]:
        return self._totals.row(i)

    def results(self, i: int) -> list[Expr]:
        return self._totals.row(i)

    def multiply(self, k_block: Expr) -> None:
        self._each_group(k_block, self._add_group)

    def _of_zero_point(self, i: int, group: Expr, bias: Expr) -> Expr:
        return bias + T.reinterpret(f"int32x{self.kit.lanes}", self._origin(i, group))

    def _origin(self, i: int, group: Expr) -> Expr:
        """The float32 whose bits the sums of row i are added to."""
        return self.kit.splat(T.bind(self.a.scales[self.place.row + i, group]))

    def _add_group(self, group: Expr) -> None:
        words = self.layout.group_words
        self._start(group)
        for word in range(words):
            self.add_word(group * words + word)
        scales = self._scales(group)
        for i in range(self.place.rows):
            origin, kind = self._origin(i, group), f"float32x{self.kit.lanes}"
            sums = [T.reinterpret(kind, v) - origin for v in self._sums.row(i)]
            terms = list(zip(sums, scales, strict=True))
            self._totals.update(i, terms, lambda acc, t: self.kit.call("sw_mac_vector", acc, *t))
