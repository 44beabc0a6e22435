"""One GEMM as a program of its own: to time it, and to test it, away from a model.

The kernel is that of the phase programs (codegen.gemm.nest) with an epilogue that stores. It reads
one of several copies of its weights, so that a benchmark can keep them out of the caches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.compile import lower, tensor
from codegen.functions import declare, ir_module
from codegen.gemm.nest import Gemm
from codegen.gemm.register_tile import Activations, Place, Weights
from codegen.kit import Expr, Kit, T
from codegen.layout.arrays import TensorSpec, bf16_from_float32
from codegen.layout.matrices import matrix_specs
from codegen.layout.operands import Int8Rows
from codegen.layout.panels import PanelLayout
from codegen.reference import quantize_activations
from codegen.spec import Cut, TileRanges, check_ranges
from platforms.isa import isa_row

NAME = "gemm"


@dataclass(frozen=True)
class GemmSpec:
    """What to generate: C[m, n] = sum over k of A[m, k] * W[n, k] for m from 0 to `max_rows`.

    has_fixed_rows: for m = max_rows alone, which is compiled several times as fast.
    """

    isa: str
    layout: PanelLayout
    num_copies: int
    num_cores: int
    max_rows: int
    tiles: TileRanges
    has_fixed_rows: bool = False

    def __post_init__(self) -> None:
        check_ranges(self.tiles)

    @property
    def kit(self) -> Kit:
        """Float activations of quantised weights are bf16 where the ISA multiplies it."""
        weights = self.layout.format
        return Kit(isa_row(self.isa), "bfloat16" if weights.is_quantized else weights.dtype)

    @property
    def int8_rows(self) -> Int8Rows | None:
        """The form of A if it is int8."""
        if not self.layout.format.has_int8_activations:
            return None
        return Int8Rows(isa_row(self.isa), self.layout)

    def arguments(self) -> dict[str, TensorSpec]:
        """The program's buffers in order: those of a, those of w, partial (scratch), out."""
        layout, kit, float32 = self.layout, self.kit, np.dtype(np.float32)
        is_cut = any(layout.num_k_blocks(tile.kc) > 1 for _, tile in self.tiles)
        a_words = (self.max_rows, kit.act_words(layout.k_padded))
        a = {"a": TensorSpec(a_words, np.dtype(kit.act_dtype))}
        if self.int8_rows:
            a = self.int8_rows.specs("a", self.max_rows)
        return {
            **a,
            **matrix_specs("w", layout, (self.num_copies,)),
            "partial": TensorSpec((self.max_rows, layout.n_padded if is_cut else 1), float32),
            "out": TensorSpec((self.max_rows, layout.n_padded), float32),
        }


class GemmProgram:
    """The compiled program; its cores are those of the calling thread's pool (pin_pool).

    `buffers` holds an array for every name of `spec.arguments()`, 64-byte aligned. Not thread-safe.
    """

    def __init__(self, spec: GemmSpec, buffers: Mapping[str, npt.NDArray[Any]]) -> None:
        self.spec = spec
        self._arrays = dict(buffers)
        self._module = lower(gemm_module(spec), isa_row(spec.isa))
        self._function = self._module[NAME]
        self._tensors = [tensor(buffers[name]) for name in spec.arguments()]

    def write_a(self, values: npt.NDArray[np.float32]) -> None:
        """Set the first rows of A from float32 (m, k), rounded to int8 or bf16 where A is that."""
        rows, a = slice(0, len(values)), self._arrays["a"]
        if self.spec.int8_rows:
            self._write_int8(self.spec.int8_rows, values)
        elif self.spec.kit.has_dot:
            a.view(np.uint16)[rows, : values.shape[1]] = bf16_from_float32(values)
        else:
            a[rows, : values.shape[1]] = values

    def _write_int8(self, form: Int8Rows, values: npt.NDArray[np.float32]) -> None:
        rounded = quantize_activations(values, form.weights.format.group)
        for name, array in form.stored("a", *rounded).items():
            self._arrays[name][: len(values)] = array

    def run(self, num_rows: int, copy: int) -> None:
        """out[:num_rows] = A[:num_rows] times copy `copy` of the weights, transposed."""
        self._function(num_rows, copy, *self._tensors)

    def assembly(self) -> str:
        """The machine code."""
        return str(self._module.inspect_source("asm"))


def gemm_module(spec: GemmSpec) -> Any:
    """The module of `spec`, whose function takes (num_rows, copy, *spec.arguments())."""

    def build() -> None:
        num_rows = T.arg("num_rows", T.int32())
        copy = T.arg("copy", T.int32())
        buffers = declare(spec.arguments())
        _multiply(spec, spec.max_rows if spec.has_fixed_rows else num_rows, copy, buffers)

    return ir_module(NAME, build)


def _multiply(spec: GemmSpec, num_rows: Expr, copy: Expr, b: Mapping[str, Expr]) -> None:
    kit, layout = spec.kit, spec.layout

    def store(row: Expr, place: Place, vectors: Sequence[Expr]) -> None:
        for j, vector in zip(place.vectors, vectors, strict=True):
            column = place.panel * layout.panel + j * layout.lanes
            kit.store(b["out"], (row, column), vector)

    a = Activations(*(b.get(part) for part in ("a", "a_scales", "a_bias", "a_sums")))
    extras = (b.get("w" + part) for part in ("_scales", "_zero_points", "_minima"))
    w = Weights(b["w"], (copy,), *extras)
    gemm = Gemm(kit, layout, spec.tiles, a, w, b["partial"], store)
    with kit.imports(), T.parallel(0, spec.num_cores) as core:
        gemm.emit(core, Cut(spec.num_cores), num_rows)
