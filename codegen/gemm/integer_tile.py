"""Register tiles of int8 activations times int8 or int4 weights: sums of products in int32.

The sums of a group of K start from the activations' bias, which takes the offset of the weights'
codes back, so that integers are exact. With one scale per output channel they stay integers over
all of K; else the group's sum, scaled, is added to a second set of float32 sums, and so is its
minimum times the sum of its activations, if it has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from codegen.gemm.register_tile import Accumulators, IntegerChains, RegisterTile
from codegen.gemm.unpacking import IntegersOfCodes
from codegen.kit import Expr, T
from codegen.layout.operands import code_offset

# Packed words of nibbles whose products with int8 activations fit into sums of 16 bits: eight times
# the two products of a multiplication of pairs, 2 x 15 x 127.
SHORT_WORDS = 4


class IntegerTile(RegisterTile):
    """int8 x int8 and int4 x int8, in their common part: the products of weight words. `scratch`
    holds the K block unpacked.
    """

    def __init__(self, *args: Expr, scratch: Expr | None = None) -> None:
        super().__init__(*args)
        self._operands = IntegersOfCodes(
            self.kit, self.layout, self.tile, self.w, self.place, scratch
        )
        shape = (self.place.rows, len(self.place.columns))
        self._sums = IntegerChains(self.kit, *shape, self.tile.chains)

    def _start(self, group: Expr) -> None:
        """Set the integer sums to the bias of `group`."""
        kit, place = self.kit, self.place
        if self.a.bias is None:
            self._sums.load(lambda i, j: T.broadcast(T.int32(0), kit.lanes))
            return
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

    def _scaled(self, i: int, group: Expr) -> list[Expr]:
        """The integer sums of row i as float32, times the activations' scale."""
        kit = self.kit
        scale = kit.splat(T.bind(self.a.scales[self.place.row + i, group]))
        return [T.cast(v, f"float32x{kit.lanes}") * scale for v in self._sums.row(i)]

    @property
    def _run_words(self) -> int:
        """Packed words whose products are added up before they meet the int32 sums."""
        has_short_sums = self.layout.format.dtype == "int4" and self.kit.isa.has_short_sums
        return SHORT_WORDS if has_short_sums else 1

    def add_word(self, k_word: Expr) -> None:
        self._add_words(0, [k_word])

    def _add_words(self, k_block: Expr, k_words: Sequence[Expr]) -> None:
        """Add the products of at most `_run_words` packed words of a K block."""
        if self._run_words > 1:
            self._add_short(k_block, k_words)
            return
        name = self._operands.product
        for k_word in k_words:
            for a, vectors in self._steps(k_block, k_word):
                for i in range(self.place.rows):
                    self._sums.update(i, vectors, partial(self._add_product, name, a(i)))

    def _add_product(self, name: str, a: Expr, acc: Expr, w: Expr) -> Expr:
        return self.kit.call(name, acc, a, w)

    def _add_short(self, k_block: Expr, k_words: Sequence[Expr]) -> None:
        """The same by way of sums of 16 bits, two in a lane."""
        kit, rows = self.kit, range(self.place.rows)
        zero = T.broadcast(T.int32(0), kit.lanes)
        sums = [[zero for _ in self.place.columns] for _ in rows]
        for k_word in k_words:
            for a, vectors in self._steps(k_block, k_word):
                for i in rows:
                    word = a(i)
                    sums[i] = [
                        T.bind(kit.call("sw_short_u4", before, word, w))
                        for before, w in zip(sums[i], vectors, strict=True)
                    ]
        for i in rows:
            self._sums.update(i, sums[i], lambda acc, s: kit.call("sw_add_short", acc, s))

    def _each_run(self, k_block: Expr, step: Callable[[Sequence[Expr]], None]) -> None:
        """step(words) for runs of words of a K block, then for what remains, word by word."""
        if self._run_words == 1:
            self._each_word(k_block, lambda k_word: step([k_word]))
            return
        per_block, total = self.layout.block_words(self.tile.kc), self.layout.k_words
        begin, run = k_block * per_block, self._run_words
        is_exact = total % per_block == 0
        count: Expr = per_block if is_exact else T.min(per_block, total - begin)
        with T.serial(0, count // run) as turn:
            step([begin + turn * run + word for word in range(run)])
        if not (is_exact and per_block % run == 0):
            with T.serial(count // run * run, count) as word:
                step([begin + word])

    def _steps(
        self, k_block: Expr, k_word: Expr
    ) -> Iterator[tuple[Callable[[int], Expr], list[Expr]]]:
        """For each step of a word: what reads the word of A of a row, and the vectors it meets."""
        steps = self._operands.vectors(k_block, k_word)
        for step, vectors in enumerate(steps):
            at = k_word * len(steps) + step
            yield partial(self._word_of_a, at), vectors

    def _word_of_a(self, at: Expr, i: int) -> Expr:
        return T.bind(self.a.words[self.place.row + i, at])


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
        self._each_run(k_block, lambda k_words: self._add_words(k_block, k_words))


class GroupTile(IntegerTile):
    """A scale per group of K, here and in the activations: sums of (a group's sum as float32, times
    the activations' scale) * its scale, then of its minimum times the sum of its activations, in
    ascending order.
    """

    def __init__(self, *args: Expr, scratch: Expr | None = None) -> None:
        super().__init__(*args, scratch=scratch)
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
        self._each_group(k_block, lambda group: self._add_group(k_block, group))

    def _add_group(self, k_block: Expr, group: Expr) -> None:
        run = min(self._run_words, self.layout.group_words)
        self._start(group)
        self._each_word_of(
            group,
            lambda first: self._add_words(k_block, [first + word for word in range(run)]),
            run,
        )
        scales = self._scales(group)
        minima = self._minima(group) if self.layout.format.has_minima else []
        for i in range(self.place.rows):
            self._totals.add_products(i, self._scaled(i, group), scales)
            if minima:
                total = self.kit.splat(T.bind(self.a.sum_of(self.place.row + i, group)))
                self._totals.add_products(i, total, minima)
