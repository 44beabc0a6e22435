"""The words kernels are written in: vector loads, stores and intrinsics of one ISA and dtype as TVM
expressions.

A kernel written with a Kit says nothing of an ISA. Kernels are plain Python functions that add
statements to the function under construction, so sizes, tiles and tails are ordinary Python values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import codegen.tvm_alone  # noqa: F401  # isort: skip
from tvm.tirx.script.builder import ir as T

from codegen.intrinsics import intrinsics_for, module_text
from codegen.layout.operands import Operands
from platforms.isa import IsaRow

CACHE_LINE_BYTES = 64


_PREFETCH = {1: "sw_prefetch", 2: "sw_prefetch_l2"}

Expr = Any  # a TVM expression or buffer; TVM's own classes carry no useful static types


class Kit(Operands):
    """Vector operations of `isa` for weights of `dtype` ("float32" or "bfloat16")."""

    def __init__(self, isa: IsaRow, dtype: str) -> None:
        super().__init__(isa, dtype)
        self._intrinsics = intrinsics_for(isa)

    def call(self, name: str, *args: Expr) -> Expr:
        """A pure call of the intrinsic `name`."""
        return T.call_pure_extern(self._intrinsics[name].dtype(self.lanes), name, *args)

    def imports(self) -> Expr:
        """The frame that brings the intrinsics' spellings into the module."""
        return T.attr(T.int32(0), "pragma_import_llvm", module_text(self.isa))

    def ramp(self, start: Expr, lanes: int | None = None) -> Expr:
        """Consecutive indices from `start`, one per lane."""
        one = T.int64(1) if getattr(start, "dtype", "int32") == "int64" else 1
        return T.ramp(start, one, lanes or self.lanes)

    def load(self, buffer: Expr, *index: Expr) -> Expr:
        """A vector of `lanes` elements from the last dimension on."""
        return buffer[(*index[:-1], self.ramp(index[-1]))]

    def store(self, buffer: Expr, index: Sequence[Expr], value: Expr) -> None:
        """Store a vector of `lanes` elements."""
        T.buffer_store(buffer, value, [*index[:-1], self.ramp(index[-1])])

    def store_act(self, buffer: Expr, row: Expr, column: Expr, value: Expr) -> None:
        """Store float32 lanes as activations (num_tokens, words), from value `column` (a multiple
        of lanes) on.
        """
        if not self.has_dot:
            self.store(buffer, (row, column), value)
            return
        half = self.lanes // 2
        words = self.call("sw_pack_bf16", value)
        T.buffer_store(buffer, words, [row, self.ramp(column // 2, half)])

    def load_act(self, buffer: Expr, row: Expr, column: Expr) -> Expr:
        """float32 lanes of activations, from value `column` on: what `store_act` has stored."""
        if not self.has_dot:
            return self.load(buffer, row, column)
        count, words = buffer.shape
        halves = T.decl_buffer((count, words * 2), "uint16", data=buffer.data)
        return self.call("sw_widen_bf16", self.load(halves, row, column))

    def prefetch(
        self, buffer: Expr, *index: Expr, ahead_bytes: Expr | int = 0, level: int = 1
    ) -> None:
        """Ask for the cache line `ahead_bytes` after an element, in the cache of that level."""
        address = T.handle_add_byte_offset(T.address_of(buffer[tuple(index)]), ahead_bytes)
        T.evaluate(T.call_extern("int32", _PREFETCH[level], address))

    def zeros(self) -> Expr:
        """A float32 vector of zeros."""
        return self.splat(0.0)

    def splat(self, value: Expr | float) -> Expr:
        """A float32 vector with `value` in every lane."""
        return T.broadcast(T.float32(value) if isinstance(value, float) else value, self.lanes)

    def a_operand(self, at: Callable[[Expr], Expr], k_word: Expr) -> tuple[Expr, ...]:
        """The scalars of A that meet weight word `k_word`; `at(i)` reads word i of A's row.

        Where bf16 weights meet float32 activations, one word of weights meets two scalars, so rows
        of A are padded with zeros to an even number of values.
        """
        if self.act_kr == self.kr:
            return (T.bind(at(k_word)),)
        return (T.bind(at(k_word * 2)), T.bind(at(k_word * 2 + 1)))

    def mac(self, acc: Expr, a: tuple[Expr, ...], b: Expr) -> Expr:
        """acc + a * b for one vector of weight words `b` and the scalars of `a_operand`."""
        if self.has_dot:
            return self.call("sw_mac_bf16", acc, a[0], b)
        if self.kr == 1:
            return self.call("sw_mac_f32", acc, a[0], b)
        low = self.call("sw_mac_f32", acc, a[0], self.call("sw_bf16_lo", b))
        return self.call("sw_mac_f32", low, a[1], self.call("sw_bf16_hi", b))


__all__ = [
    "CACHE_LINE_BYTES",
    "Expr",
    "Kit",
    "T",
]
