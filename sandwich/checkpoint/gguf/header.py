"""The header of a GGUF file: metadata and places of tensors, every length checked against the file.

Source: the GGUF specification, versions 2 and 3. The `gguf` package reads the same into an array
for each string, which takes seconds for the vocabulary of a large model, and trusts the lengths.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from sandwich.checkpoint.gguf.codes import FORMATS
from sandwich.checkpoint.source import StoredTensor
from sandwich.checkpoint.strangers import unreadable
from sandwich.errors import ModelError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_METADATA_NBYTES: Final = 256 << 20  # of one header: twenty times that of the largest vocabulary
MAX_DIMS: Final = 4
MAX_VALUES: Final = 1 << 48  # of a tensor
_BUFFER_NBYTES: Final = 1 << 20
_SCALARS: Final[dict[int, np.dtype[Any]]] = {
    GGUFValueType.UINT8: np.dtype("<u1"),
    GGUFValueType.INT8: np.dtype("<i1"),
    GGUFValueType.UINT16: np.dtype("<u2"),
    GGUFValueType.INT16: np.dtype("<i2"),
    GGUFValueType.UINT32: np.dtype("<u4"),
    GGUFValueType.INT32: np.dtype("<i4"),
    GGUFValueType.FLOAT32: np.dtype("<f4"),
    GGUFValueType.UINT64: np.dtype("<u8"),
    GGUFValueType.INT64: np.dtype("<i8"),
    GGUFValueType.FLOAT64: np.dtype("<f8"),
    GGUFValueType.BOOL: np.dtype("?"),
}
_U32, _U64, _COUNTS = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQQ")


@dataclass(frozen=True)
class Header:
    """What a file says of itself. Values are int, float, bool, str or lists of them."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]  # by the file's own names; dtype as ggml spells it


def read_header(file: Path) -> Header:
    """Metadata and tensors of a file. Raises ModelError if it is no sound GGUF file."""
    try:
        with file.open("rb", buffering=_BUFFER_NBYTES) as stream:
            return _Parser(file, stream).header()
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error


class _Parser:
    """One pass over a header; whatever it asks for must be in the file."""

    def __init__(self, file: Path, stream: BinaryIO) -> None:
        self._file = file
        self._stream = stream
        self._size = file.stat().st_size
        self._at = 0

    def header(self) -> Header:
        if self._take(len(MAGIC)) != MAGIC:
            raise unreadable(self._file, "is not a GGUF file")
        version, num_tensors, num_values = _COUNTS.unpack(self._take(_COUNTS.size))
        if version not in VERSIONS:
            known = " and ".join(map(str, VERSIONS))
            raise ModelError(
                f"{self._file}: is GGUF of version {version}; supported: little-endian {known}"
            )
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._string()
            if key in metadata:
                raise self._damaged(f"key {key[:80]!r} stands twice")
            metadata[key] = self._value(self._u32())
        found = [self._tensor() for _ in range(num_tensors)]
        return Header(self._file, metadata, self._placed(found, metadata))

    def _placed(
        self, found: list[tuple[str, StoredTensor]], metadata: Mapping[str, Any]
    ) -> dict[str, StoredTensor]:
        """Tensors by name, with offsets from the beginning of the file."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self._at // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in found:
            if name in tensors:
                raise self._damaged(f"tensor {name[:80]!r} stands twice")
            offset = start + tensor.offset
            if offset + tensor.nbytes > self._size:
                raise ModelError(
                    f"{self._file}: is cut short: tensor {name[:80]} ends at byte "
                    f"{offset + tensor.nbytes} of {self._size}; fetch it again"
                )
            tensors[name] = replace(tensor, offset=offset)
        return tensors

    def _tensor(self) -> tuple[str, StoredTensor]:
        """Name and place, the offset as it is written."""
        name, num_dims = self._string(), self._u32()
        if not 1 <= num_dims <= MAX_DIMS:
            raise self._damaged(f"tensor {name[:80]!r} has {num_dims} dimensions")
        dims = struct.unpack(f"<{num_dims}Q", self._take(8 * num_dims))
        if not 0 < math.prod(dims) <= MAX_VALUES:
            raise self._damaged(f"tensor {name[:80]!r} has the shape {list(dims)}")
        dtype, offset = self._u32(), self._u64()
        try:
            spelled = GGMLQuantizationType(dtype).name
        except ValueError:
            raise ModelError(
                f"{self._file}: tensor {name[:80]} is of type {dtype}, which is not known here; "
                "give a file in another quantisation"
            ) from None
        block, block_nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[spelled]]
        if dims[0] % block:
            raise self._damaged(
                f"rows of tensor {name[:80]} have {dims[0]} values, but those of {spelled} are "
                f"blocks of {block}"
            )
        if num_dims == 1 and block > 1:
            raise self._damaged(f"tensor {name[:80]} is a vector of {spelled}")
        nbytes = math.prod(dims) // block * block_nbytes
        shape = tuple(reversed(dims))
        codes = FORMATS.get(spelled) if num_dims > 1 else None
        return name, StoredTensor(spelled, shape, self._file, offset, nbytes, codes)

    def _value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind == GGUFValueType.ARRAY:
            return self._array(self._u32(), self._u64())
        return self._scalars(kind, 1)[0]

    def _array(self, kind: int, length: int) -> list[Any]:
        if kind == GGUFValueType.STRING:
            self._check(8 * length)
            return [self._string() for _ in range(length)]
        return self._scalars(kind, length)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        dtype = _SCALARS.get(kind)
        if dtype is None:
            raise self._damaged(f"a value has the type {kind}")
        values: list[Any] = np.frombuffer(self._take(count * dtype.itemsize), dtype).tolist()
        return values

    def _string(self) -> str:
        data = self._take(self._u64())
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self._damaged(f"a text is not UTF-8 ({error.reason})") from None

    def _u32(self) -> int:
        value: int = _U32.unpack(self._take(4))[0]
        return value

    def _u64(self) -> int:
        value: int = _U64.unpack(self._take(8))[0]
        return value

    def _take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._check(count)
        data = self._stream.read(count)
        self._at += count
        if len(data) != count:
            raise self._cut_short()
        return data

    def _check(self, count: int) -> None:
        """That `count` more bytes may be there; nothing is allocated for a length that is a lie."""
        if self._at + count > self._size:
            raise self._cut_short()
        if self._at + count > MAX_METADATA_NBYTES:
            raise ModelError(
                f"{self._file}: its metadata exceed {MAX_METADATA_NBYTES >> 20} MiB; "
                "give a file without such"
            )

    def _cut_short(self) -> ModelError:
        return ModelError(f"{self._file}: its header is damaged or cut short; fetch it again")

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._file}: is damaged: {what}; fetch it again")
