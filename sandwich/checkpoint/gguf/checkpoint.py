"""The tensors of GGUF files by their Hugging Face names, dequantised where they are read.

Values are those of the `gguf` package's dequantisation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from codegen.layout.arrays import widen
from codegen.layout.quantize import QuantizedRows
from sandwich.checkpoint.files import ReadsFiles
from sandwich.checkpoint.gguf.architectures import (
    LONGROPE_FACTORS,
    ROPE_FACTORS,
    architecture_of,
    head_dim,
    is_paired,
    tensor_name,
)
from sandwich.checkpoint.gguf.codes import read_blocks
from sandwich.checkpoint.gguf.header import Header
from sandwich.checkpoint.source import Array, StoredTensor
from sandwich.errors import ModelError

Buffer = npt.NDArray[np.uint8]

# Types whose values are read as they are; bf16 as bit patterns.
_PLAIN: Final[dict[str, np.dtype[Any]]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
}
_QUANTIZED: Final = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ4_NL", "IQ4_XS", "MXFP4"),
)


class GgufCheckpoint(ReadsFiles):
    """The tensors of one model, in one file or several."""

    dtypes = (*_PLAIN, *_QUANTIZED)

    def __init__(self, header: Header) -> None:
        """Raises ModelError for two tensors of one name."""
        super().__init__()
        self.path = header.file
        self.tensors: dict[str, StoredTensor] = {}
        self._architecture = architecture_of(header)
        self._head_dim = head_dim(header)
        for own_name, tensor in header.tensors.items():
            name = tensor_name(self._architecture, own_name)
            if name in self.tensors:
                raise ModelError(f"{header.file}: holds {name} twice; fetch it again")
            if own_name not in (ROPE_FACTORS, *LONGROPE_FACTORS):  # parts of the configuration
                self.tensors[name] = tensor
        self.files = sorted({tensor.file for tensor in self.tensors.values()})

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """As Checkpoint says; quantised types as float32."""
        tensor = self.tensors[name]
        if self._architecture.norm_offset and "norm" in name:
            values = _values(tensor, self._read(tensor, start, stop, buffer), stop - start)
            return widen(values) - np.float32(self._architecture.norm_offset)
        if not is_paired(self._architecture, name):
            return _values(tensor, self._read(tensor, start, stop, buffer), stop - start)
        raw, picked = self._read_heads(tensor, start, stop)
        return _values(tensor, raw, len(raw))[picked]

    def read_codes(
        self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> QuantizedRows:
        """As Checkpoint says."""
        tensor = self.tensors[name]
        if not is_paired(self._architecture, name):
            return read_blocks(self._read(tensor, start, stop, buffer), tensor.dtype)
        raw, picked = self._read_heads(tensor, start, stop)
        return read_blocks(raw[picked], tensor.dtype)

    def _read_heads(
        self, tensor: StoredTensor, start: int, stop: int
    ) -> tuple[Buffer, npt.NDArray[np.intp]]:
        """The heads that have rows [start, stop), as they are stored, and where those are in it."""
        dim = self._head_dim
        first, last = start // dim * dim, -(-stop // dim) * dim
        raw = self._read(tensor, first, last, np.empty(0, np.uint8))
        picked = _paired_rows(np.arange(start, stop), dim) - first
        return (raw.reshape(last - first, -1), picked)

    def _read(self, tensor: StoredTensor, start: int, stop: int, buffer: Buffer) -> Buffer:
        """Rows as they are stored, (rows, bytes), in `buffer` if it is large enough."""
        count, nbytes = stop - start, tensor.nbytes // tensor.shape[0]
        if len(buffer) < count * nbytes:
            buffer = np.empty(count * nbytes, np.uint8)
        raw = buffer[: count * nbytes]
        self._files.read(tensor.file, tensor.offset + start * nbytes, raw)
        return raw.reshape(count, nbytes)


def _values(tensor: StoredTensor, raw: Buffer, count: int) -> Array:
    """Stored rows as floats."""
    shape = (count, *tensor.shape[1:])
    if tensor.dtype in _PLAIN:
        return raw.view(_PLAIN[tensor.dtype]).reshape(shape)
    with np.errstate(all="ignore"):  # what is not finite is refused where it is packed
        return dequantize(raw, GGMLQuantizationType[tensor.dtype]).reshape(shape)


def _paired_rows(rows: npt.NDArray[np.intp], dim: int) -> npt.NDArray[np.intp]:
    """Where the file has rows of q or k: dims i and i + dim / 2 of a head are neighbours there."""
    head, place = np.divmod(rows, dim)
    half, pair = np.divmod(place, dim // 2)
    found: npt.NDArray[np.intp] = head * dim + 2 * pair + half
    return found
