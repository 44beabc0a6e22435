"""Register tiles of float activations times weights that are floats, or codes of 8 or 4 bits.

Codes minus their zero point become bf16 pairs, or float32 where the ISA does not multiply bf16
(codegen.gemm.unpacking). Sums of products with unscaled weights are ended by one scale or, group by
group, scaled terms add up. A group's minimum meets the sum of its activations, which a core makes
once for all panels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from codegen.gemm.register_tile import Accumulators, Activations, RegisterTile
from codegen.gemm.unpacking import unpacking_of
from codegen.kit import Expr, Kit, T
from codegen.layout.panels import PanelLayout

BF16_ONES = 0x3F803F80  # a pair


class FloatTile(RegisterTile):
    """Weights without scales, with one per channel, or per group; `scratch` holds the K block
    unpacked.
    """

    def __init__(self, *args: Expr, scratch: Expr | None = None) -> None:
        super().__init__(*args)
        make = unpacking_of(self.layout)
        self._operands = make(self.kit, self.layout, self.tile, self.w, self.place, scratch)
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
        if self.layout.format.group or not self.layout.format.is_quantized:
            return self._totals.row(i)
        return [v * s for v, s in zip(self._sums.row(i), self._scales(0), strict=True)]

    def multiply(self, k_block: Expr) -> None:
        if self.layout.format.group:
            self._each_group(k_block, lambda group: self._add_group(k_block, group))
            return
        self._operands.begin(0)
        self._each_word(k_block, lambda k_word: self._add(k_block, k_word))

    def add_word(self, k_word: Expr) -> None:
        self._operands.begin(k_word // self.layout.group_words)
        self._add(0, k_word)

    def _add_group(self, k_block: Expr, group: Expr) -> None:
        self._sums.clear()
        self._operands.begin(group)
        self._each_word_of(group, lambda k_word: self._add(k_block, k_word))
        scales = self._scales(group)
        minima = self._minima(group) if self.layout.format.has_minima else []
        for i in range(self.place.rows):
            self._totals.add_products(i, self._sums.row(i), scales)
            if minima:
                total = self.kit.splat(T.bind(self.a.sum_of(self.place.row + i, group)))
                self._totals.add_products(i, total, minima)

    def _add(self, k_block: Expr, k_word: Expr) -> None:
        """Add the products of one packed word."""
        name = "sw_mac_bf16" if self.kit.has_dot else "sw_mac_f32"
        steps = self._operands.vectors(k_block, k_word)
        for step, vectors in enumerate(steps):
            at = k_word * len(steps) + step
            for i in range(self.place.rows):
                a = T.bind(self.a.words[self.place.row + i, at])
                self._sums.update(i, vectors, lambda acc, w, a=a: self.kit.call(name, acc, a, w))


def with_sums(
    kit: Kit, layout: PanelLayout, a: Activations, first: Expr, num_rows: Expr, most: int
) -> Activations:
    """`a` with the sums of the groups of rows [first, first + num_rows), of which none is beyond
    `most`, in memory of the core that calls this.
    """
    groups, num_words = layout.num_groups, layout.format.group // kit.act_kr
    sums = T.alloc_buffer((most, groups), "float32")
    add, one = ("sw_mac_bf16", T.int32(BF16_ONES)) if kit.has_dot else ("sw_mac_f32", T.float32(1))
    with T.serial(0, num_rows) as i, T.serial(0, groups) as group:
        row = first + i
        total = kit.zeros()
        for word in range(0, num_words, kit.lanes):
            vector = kit.load(a.words, row, group * num_words + word)
            total = kit.call(add, total, one, vector)
        T.buffer_store(sums, kit.call("sw_hsum", total), [i, group])
    return replace(a, sums=sums, summed_from=first)
