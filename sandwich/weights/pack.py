"""Writes rows of checkpoint tensors into a model's packed tensors: which role goes where."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import bf16_from_float32, widen
from codegen.layout.model import ModelLayout
from codegen.layout.panels import PackedMatrix
from codegen.layout.quantize import QuantizedRows
from sandwich.models.llama import CheckpointTensor

Array = npt.NDArray[Any]
Rows = Array | QuantizedRows


class WeightPacker:
    """Packs into `tensors`, the arrays of `layout.tensor_specs()`, zero at first.

    Disjoint rows may be packed by several threads at once.
    """

    def __init__(self, layout: ModelLayout, tensors: Mapping[str, Array]) -> None:
        shape = layout.shape
        num_query, num_key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self._layout = layout
        self._tensors = tensors
        self._first_column = {"q": 0, "k": num_query, "v": num_query + num_key}
        self._matrices: dict[str, tuple[str, Callable[[Rows, int, PackedMatrix], None]]] = {
            "o": ("o", layout.pack_o),
            "gate": ("gate_up", partial(layout.pack_gate_or_up, "gate")),
            "up": ("gate_up", partial(layout.pack_gate_or_up, "up")),
            "down": ("down", layout.down.pack_rows),
        }

    def pack(self, tensor: CheckpointTensor, start: int, rows: Rows) -> None:
        """Write rows [start, start + r) of `tensor`: float32, float16 or uint16 bf16 bits; or codes
        in the format of the tensor's matrix, which are kept bit for bit.
        """
        role, tensors = tensor.role, self._tensors
        if len(tensor.shape) == 1 or role == "embed_tokens":
            assert not isinstance(rows, QuantizedRows), tensor
            if role == "embed_tokens":
                tensors[role][start : start + len(rows)] = _as_dtype(rows, tensors[role].dtype)
            else:
                self._pack_vector(tensor, widen(rows))
            return
        value_dtype = (self._layout.lm_head if role == "lm_head" else self._layout.qkv).value_dtype
        if not isinstance(rows, QuantizedRows):
            rows = _as_dtype(rows, value_dtype)
        if role == "lm_head":
            self._layout.lm_head.pack_rows(rows, start, self._layout.matrix(tensors, role))
            return
        if role in self._first_column:
            column = self._first_column[role] + start
            out = self._layout.matrix(tensors, "qkv", tensor.layer)
            self._layout.qkv.pack_rows(rows, column, out)
        else:
            packed, pack_rows = self._matrices[role]
            pack_rows(rows, start, self._layout.matrix(tensors, packed, tensor.layer))

    def _pack_vector(self, tensor: CheckpointTensor, values: Array) -> None:
        """Norm weights as they are; biases in the order of their matrix's packed columns."""
        role = tensor.role.removesuffix("_bias")
        columns: slice | Array = slice(0, len(values))
        packed = tensor.role
        if role in self._first_column:
            packed, first = "qkv_bias", self._first_column[role]
            columns = slice(first, first + len(values))
        elif role in ("gate", "up"):
            packed, columns = "gate_up_bias", self._layout.packed_columns(role)
        target = self._tensors[packed]
        (target[tensor.layer] if target.ndim == 2 else target)[columns] = values


def _as_dtype(values: Array, dtype: np.dtype[Any]) -> Array:
    """float32, float16 or bf16 bits as float32 or as bf16 bits (uint16); nothing is copied if they
    are.
    """
    if values.dtype == dtype:
        return values
    floats = widen(values)
    return bf16_from_float32(floats) if dtype == np.uint16 else floats
