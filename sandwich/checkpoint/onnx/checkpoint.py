"""The tensors of a decoder in an ONNX graph by their Hugging Face names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import widen
from codegen.layout.quantize import QuantizedRows
from sandwich.checkpoint.files import ReadsFiles
from sandwich.checkpoint.onnx.decoder import Decoder, Linear, Rows
from sandwich.checkpoint.onnx.graph import NUMPY, Constant, OnnxGraph
from sandwich.checkpoint.quantized.grid import SCALE_DTYPES, Grid, form_of, unpack_bits
from sandwich.checkpoint.source import Array, StoredTensor

KEPT: Final = 6  # constants of which all is read at once


class OnnxCheckpoint(ReadsFiles):
    """The tensors of `decoder`, which was found in `graph`."""

    def __init__(self, graph: OnnxGraph, decoder: Decoder) -> None:
        """Raises ModelError for a matrix whose constants do not fit each other."""
        super().__init__()
        self.path = graph.file
        self._graph, self._rows = graph, decoder.tensors
        self._whole = lru_cache(KEPT)(self._read_whole)
        self.tensors = {name: self._stored(rows) for name, rows in decoder.tensors.items()}
        self.files = sorted({graph.file, *(each.file for each in self.tensors.values())})
        codes = {t.dtype for t in self.tensors.values() if t.dtype.startswith("ONNX")}
        self.dtypes = (*SCALE_DTYPES, *sorted(codes))

    def _stored(self, rows: Rows) -> StoredTensor:
        if isinstance(rows.of, Constant):
            tensor = rows.of.tensor
            return StoredTensor(tensor.dtype, (rows.count,), tensor.file, tensor.offset, 0)
        linear = rows.of
        tensor, shape = linear.weights.tensor, (rows.count, linear.k)
        nbytes = tensor.nbytes * rows.count // max(1, linear.n)
        if not linear.bits:
            return StoredTensor(tensor.dtype, shape, tensor.file, tensor.offset, nbytes)
        assert linear.scales is not None, linear
        blocks = -(-linear.k // linear.block)
        wanted = (linear.n, blocks, linear.block * linear.bits // 8)
        scales = linear.scales.tensor
        if linear.weights.shape != wanted or np.prod(linear.scales.shape) != linear.n * blocks:
            raise self._graph.error(f"{linear.weights.name} has not the shape {list(wanted)}")
        nbytes += scales.nbytes * rows.count // max(1, linear.n)
        form = form_of(linear.bits, linear.block, scales.dtype, linear.zeros is not None)
        dtype = f"ONNX {linear.bits} bits"
        return StoredTensor(dtype, shape, tensor.file, tensor.offset, nbytes, form)

    def close(self) -> None:
        self._whole.cache_clear()
        super().close()

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """As Checkpoint says; codes as float32."""
        rows = self._rows[name]
        some = slice(rows.first + start, rows.first + stop)
        if isinstance(rows.of, Constant):
            return self._whole(rows.of)[some]
        if rows.of.bits:
            return self._grid(rows.of, some).values()
        if rows.of.is_in_rows:
            return self._read(rows.of.weights, some.start, some.stop)
        return np.ascontiguousarray(self._whole(rows.of.weights)[:, some].T)

    def read_codes(
        self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> QuantizedRows:
        """As Checkpoint says."""
        rows, weights = self._rows[name], self.tensors[name].codes
        assert isinstance(rows.of, Linear), name
        assert weights is not None, name
        return self._grid(rows.of, slice(rows.first + start, rows.first + stop)).rows(weights)

    def read_constant(self, constant: Constant) -> Array:
        """All of a constant of the graph."""
        return self._whole(constant)

    def _grid(self, linear: Linear, some: slice) -> Grid:
        """Rows of a matrix of codes."""
        assert linear.scales is not None, linear
        count, blocks = some.stop - some.start, -(-linear.k // linear.block)
        raw = self._read(linear.weights, some.start, some.stop).reshape(count, -1)
        scales = widen(self._whole(linear.scales)).reshape(linear.n, blocks)[some]
        zeros = None
        if linear.zeros is not None:  # whole bytes for each row
            packed = self._whole(linear.zeros).reshape(linear.n, -1)[some]
            zeros = unpack_bits(packed, linear.bits, blocks).astype(np.int32)
        codes = unpack_bits(raw, linear.bits, linear.k)
        return Grid(linear.bits, linear.block, codes, scales, zeros)

    def _read_whole(self, constant: Constant) -> npt.NDArray[Any]:
        return self._read(constant, 0, constant.shape[0])

    def _read(self, constant: Constant, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) of a constant."""
        tensor = constant.tensor
        dtype = NUMPY[tensor.dtype]
        row_nbytes = tensor.nbytes // max(1, tensor.shape[0])
        rows = np.empty((stop - start, *tensor.shape[1:]), dtype)
        flat = rows.reshape(-1).view(np.uint8)
        if constant.data is not None:
            first = start * row_nbytes
            flat[:] = np.frombuffer(constant.data, np.uint8)[first : first + len(flat)]
        else:
            self._files.read(tensor.file, tensor.offset + start * row_nbytes, flat)
        return rows
