"""One GEMM as a program of its own: to time it, and to test it, away from a model.

The kernel is that of the phase programs (codegen.gemm) with an epilogue that stores. It reads one
of several copies of its weights, so that a benchmark can keep them out of the caches. Knows nothing
of clocks or of what it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.arrays import TensorSpec, bf16_from_float32
from codegen.compile import lower, tensor
from codegen.gemm import Gemm
from codegen.kit import Expr, Kit, T, prim_func
from codegen.panels import PanelLayout
from codegen.register_tile import Activations, Weights
from codegen.spec import TileRanges, check_ranges
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
        return Kit(isa_row(self.isa), self.layout.format.dtype)

    def arguments(self) -> dict[str, TensorSpec]:
        """The program's buffers in order: a, w, partial (scratch), out."""
        layout, kit, float32 = self.layout, self.kit, np.dtype(np.float32)
        is_cut = any(layout.num_k_blocks(tile.kc) > 1 for _, tile in self.tiles)
        a_words = kit.act_words(layout.k_padded)
        return {
            "a": TensorSpec((self.max_rows, a_words), np.dtype(kit.act_dtype)),
            "w": TensorSpec((self.num_copies, layout.num_words), layout.word_dtype),
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
        self._module = lower(gemm_function(spec), isa_row(spec.isa))
        self._function = self._module[NAME]
        self._tensors = [tensor(buffers[name]) for name in spec.arguments()]

    def write_a(self, values: npt.NDArray[np.float32]) -> None:
        """Set the first rows of A from float32 (m, k); rounds to bf16 where the ISA reads that."""
        if self.spec.kit.has_dot:
            a = self._arrays["a"].view(np.uint16)
            a[: len(values), : values.shape[1]] = bf16_from_float32(values)
        else:
            self._arrays["a"][: len(values), : values.shape[1]] = values

    def run(self, num_rows: int, copy: int) -> None:
        """out[:num_rows] = A[:num_rows] times copy `copy` of the weights, transposed."""
        self._function(num_rows, copy, *self._tensors)

    def assembly(self) -> str:
        """The machine code."""
        return str(self._module.inspect_source("asm"))


def gemm_function(spec: GemmSpec) -> Any:
    """The PrimFunc of `spec`: (num_rows, copy, a, w, partial, out)."""
    kit, layout = spec.kit, spec.layout

    def build() -> None:
        num_rows = T.arg("num_rows", T.int32())
        copy = T.arg("copy", T.int32())
        handles = {name: T.arg(name, T.handle()) for name in spec.arguments()}
        b = {
            name: T.match_buffer(handles[name], [T.int64(n) for n in s.shape], str(s.dtype))
            for name, s in spec.arguments().items()
        }

        def store(row: Expr, panel: Expr, columns: Sequence[int], vectors: Sequence[Expr]) -> None:
            for j, vector in zip(columns, vectors, strict=True):
                kit.store(b["out"], (row, panel * layout.panel + j * layout.lanes), vector)

        a, w = Activations(b["a"]), Weights(b["w"], copy)
        gemm = Gemm(kit, layout, spec.tiles, a, w, b["partial"], store)
        with kit.imports(), T.parallel(0, spec.num_cores) as core:
            gemm.emit(core, spec.num_cores, spec.max_rows if spec.has_fixed_rows else num_rows)

    return prim_func(NAME, build)
