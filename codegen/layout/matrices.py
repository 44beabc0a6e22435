"""Where the outputs and inputs of a model's matrix lie in its panels.

NumPy only. Parts follow each other, or lie side by side in half panels; the inputs that come from
heads have room for whole vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Array, TensorSpec, round_up
from codegen.layout.panels import PackedMatrix, PanelLayout
from codegen.layout.quantize import QuantizedRows
from codegen.model.tables import Matrix
from codegen.spec import WeightFormat


@dataclass(frozen=True)
class MatrixLayout:
    """A matrix of the model and its panels."""

    matrix: Matrix
    panels: PanelLayout

    @staticmethod
    def of(matrix: Matrix, weights: WeightFormat, panel: int, lanes: int) -> MatrixLayout:
        """The layout of a matrix in a format; `panel` is a multiple of 2 * lanes."""
        n, k = matrix.n, matrix.k
        if matrix.in_halves:
            n = sum(round_up(rows, lanes) for _, rows in matrix.parts)
        if matrix.num_heads:
            k = matrix.num_heads * round_up(k // matrix.num_heads, lanes)
        return MatrixLayout(matrix, PanelLayout(n, k, weights, panel, lanes))

    def columns(self, part: str) -> npt.NDArray[np.intp]:
        """The column of the packed matrix that holds each row of a part."""
        names = [name for name, _ in self.matrix.parts]
        at, sizes = names.index(part), [rows for _, rows in self.matrix.parts]
        index = np.arange(sizes[at])
        if not self.matrix.in_halves:
            return index + sum(sizes[:at])
        half = self.panels.panel // 2
        chunk = index // half
        width = np.minimum(half, round_up(sizes[at], self.panels.lanes) - chunk * half)
        columns: npt.NDArray[np.intp] = chunk * self.panels.panel + index % half
        return columns + at * width  # of the chunk's half

    @property
    def can_keep_codes(self) -> bool:
        """Whether `pack` takes codes: room inside heads would shift their groups."""
        return self.panels.k == self.matrix.k

    def pack(
        self,
        part: str,
        rows: Array | QuantizedRows,
        start: int | npt.NDArray[np.intp],
        out: PackedMatrix,
    ) -> None:
        """Write rows [start, start + r) of a part, or those named by `start`, (r,), as
        `PanelLayout.pack_rows` takes them.
        """
        places = start + np.arange(len(rows)) if isinstance(start, int) else start
        columns = self.columns(part)[places]
        ends = [*(np.flatnonzero(np.diff(columns) != 1) + 1).tolist(), len(rows)]
        begin = 0
        for end in ends:  # of the runs of neighbouring columns
            step = end - begin if self.can_keep_codes else self.panels.panel
            for first in range(begin, end, step):
                some = rows[first : min(first + step, end)]
                if not self.can_keep_codes:
                    assert isinstance(some, np.ndarray), self.matrix
                    some = self.with_room(some)
                self.panels.pack_rows(some, int(columns[first]), out)
            begin = end

    def with_room(self, rows: Array) -> Array:
        """Rows of k values, (r, k), with zeros where the inputs of a head have room for more."""
        heads = self.matrix.num_heads
        if self.panels.k == rows.shape[1]:
            return rows
        wide = np.zeros((len(rows), heads, self.panels.k // heads), rows.dtype)
        wide[:, :, : self.matrix.k // heads] = rows.reshape(len(rows), heads, -1)
        return wide.reshape(len(rows), -1)

    def specs(self, stack: tuple[int, ...]) -> dict[str, TensorSpec]:
        """The arrays of a stack of such matrices, of layers and experts, or of one: words, where
        quantised scales and zero points, and the bias if there is one.
        """
        role = self.matrix.role
        specs = matrix_specs(role, self.panels, stack)
        if self.matrix.has_bias:
            bias = TensorSpec((*stack, self.panels.n_padded), np.dtype(np.float32))
            specs[role + "_bias"] = bias
        return specs


def matrix_specs(role: str, panels: PanelLayout, stack: tuple[int, ...]) -> dict[str, TensorSpec]:
    """The tensors of one role's matrices: words and, where quantised, scales and zero points or
    minima.
    """
    specs = {role: TensorSpec((*stack, panels.num_words), panels.word_dtype)}
    per_scale = (*stack, panels.num_scales)
    if panels.format.is_quantized:
        specs[role + "_scales"] = TensorSpec(per_scale, panels.scale_dtype)
    if panels.format.has_zero_points:
        specs[role + "_zero_points"] = TensorSpec(per_scale, np.dtype(np.uint8))
    if panels.format.has_minima:
        specs[role + "_minima"] = TensorSpec(per_scale, panels.scale_dtype)
    return specs
