"""Writes rows of checkpoint tensors into a model's packed tensors: which part goes where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import bf16_from_float32, widen
from codegen.layout.model import ModelLayout
from codegen.layout.quantize import QuantizedRows
from sandwich.models.tensors import CheckpointTensor, Part

Array = npt.NDArray[Any]
Rows = Array | QuantizedRows


class WeightPacker:
    """Packs into `tensors`, the arrays of `layout.tensor_specs()`, zero at first.

    Disjoint rows may be packed by several threads at once.
    """

    def __init__(self, layout: ModelLayout, tensors: Mapping[str, Array]) -> None:
        self._layout = layout
        self._tensors = tensors

    def pack(self, tensor: CheckpointTensor, start: int, rows: Rows) -> None:
        """Write rows [start, start + r) of `tensor`: float32, float16 or uint16 bf16 bits; or codes
        in the format of the tensor's matrix, which are kept bit for bit.
        """
        for part, first, mine in tensor.pieces(start, start + len(rows)):
            self._pack_part(tensor, part, first, rows[mine])

    def _pack_part(self, tensor: CheckpointTensor, part: Part, start: int, rows: Rows) -> None:
        layout, tensors = self._layout, self._tensors
        if len(tensor.shape) == 2 and part.role in layout.matrices:
            matrix = layout.matrices[part.role]
            out = layout.matrix(tensors, part.role, tensor.layer, tensor.expert)
            if not isinstance(rows, QuantizedRows):
                rows = _as_dtype(rows, matrix.panels.value_dtype)
            places = part.places(start, start + len(rows))
            if part.order:  # ascending, so that neighbours are packed together
                ascending = np.argsort(places)
                rows, places = rows[ascending], places[ascending]
            matrix.pack(part.name, rows, places, out)
            return
        assert not isinstance(rows, QuantizedRows), tensor
        if len(tensor.shape) == 1:
            values = (widen(rows) + np.float32(tensor.offset)) * np.float32(tensor.scale)
            self._pack_vector(tensor, part, start, values)
        else:
            table = tensors[part.role]
            table[start : start + len(rows)] = _as_dtype(rows, table.dtype)

    def _pack_vector(self, tensor: CheckpointTensor, part: Part, start: int, values: Array) -> None:
        """Norm weights in their order; biases in the order of their matrix's packed columns."""
        name = part.role
        columns = part.places(start, start + len(values))
        if name in self._layout.matrices:
            columns = self._layout.matrices[name].columns(part.name)[columns]
            name += "_bias"
        which = tuple(index for index in (tensor.layer, tensor.expert) if index is not None)
        self._tensors[name][which][columns] = values


def _as_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
    """float32, float16 or bf16 bits as float32 or as bf16 bits (uint16); nothing is copied if they
    are.
    """
    if values.dtype == dtype:
        return values
    floats = widen(values)
    return bf16_from_float32(floats) if dtype == np.uint16 else floats
