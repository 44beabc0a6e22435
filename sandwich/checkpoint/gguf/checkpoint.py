"""The tensors of GGUF files by their Hugging Face names, dequantised where they are read.

Values are those of the `gguf` package's dequantisation.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from sandwich.checkpoint.files import OpenFiles
from sandwich.checkpoint.gguf.architectures import (
    ROPE_FACTORS,
    architecture_of,
    head_dim,
    is_paired,
    tensor_name,
)
from sandwich.checkpoint.gguf.header import Header, row_nbytes
from sandwich.checkpoint.source import Array, StoredTensor
from sandwich.errors import ModelError

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


class GgufCheckpoint:
    """The tensors of one model, in one file or several."""

    dtypes = (*_PLAIN, *_QUANTIZED)

    def __init__(self, header: Header) -> None:
        """Raises ModelError for two tensors of one name."""
        self.path = header.file
        self.tensors: dict[str, StoredTensor] = {}
        self._architecture = architecture_of(header)
        self._head_dim = head_dim(header)
        self._files = OpenFiles()
        for own_name, tensor in header.tensors.items():
            name = tensor_name(self._architecture, own_name)
            if name in self.tensors:
                raise ModelError(f"{header.file}: holds {name} twice; fetch it again")
            if own_name != ROPE_FACTORS:  # which is a part of the configuration
                self.tensors[name] = tensor

    def __enter__(self) -> Self:
        self._files.open(tensor.file for tensor in self.tensors.values())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.close()

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """As Checkpoint says; quantised types as float32."""
        if not is_paired(self._architecture, name):
            return self._read(self.tensors[name], start, stop, buffer)
        # Rows of whole heads, of which those that are asked for are picked.
        dim = self._head_dim
        first, last = start // dim * dim, -(-stop // dim) * dim
        values = self._read(self.tensors[name], first, last, np.empty(0, np.uint8))
        return values[_paired_rows(np.arange(start, stop), dim) - first]

    def _read(
        self, tensor: StoredTensor, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> Array:
        """Rows in the order of the file, in `buffer` if it is large enough."""
        is_vector = len(tensor.shape) == 1
        first, count = (0, 1) if is_vector else (start, stop - start)
        nbytes = row_nbytes(tensor)
        if len(buffer) < count * nbytes:
            buffer = np.empty(count * nbytes, np.uint8)
        raw = buffer[: count * nbytes]
        self._files.read(tensor.file, tensor.offset + first * nbytes, raw)
        if tensor.dtype in _PLAIN:
            values: Array = raw.view(_PLAIN[tensor.dtype])
        else:
            with np.errstate(all="ignore"):  # what is not finite is refused where it is packed
                values = dequantize(raw.reshape(-1, nbytes), GGMLQuantizationType[tensor.dtype])
        if is_vector:
            return values.reshape(-1)[start:stop]
        return values.reshape(count, *tensor.shape[1:])


def _paired_rows(rows: npt.NDArray[np.intp], dim: int) -> npt.NDArray[np.intp]:
    """Where the file has rows of q or k: dims i and i + dim / 2 of a head are neighbours there."""
    head, place = np.divmod(rows, dim)
    half, pair = np.divmod(place, dim // 2)
    found: npt.NDArray[np.intp] = head * dim + 2 * pair + half
    return found
