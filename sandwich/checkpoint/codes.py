"""Matrices that a folder holds as codes, the way `sandwich quantize` writes them.

A matrix NAME, (n, k), is three safetensors: NAME.codes uint8, a code in each byte or, of 4 bits,
that of an even column in the low half of a byte and the next in its high half; NAME.scales and, if
the format has them, NAME.minima, (n, groups), float16 or float32. `config.json` has the formats:
    "quantization_config": {"quant_method": "sandwich", "layers": {...}, "lm_head": {...},
                            "lm_head_tensor": NAME}
with the fields of codegen.spec.WeightFormat, and the matrix that has the second of the formats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import widen
from codegen.layout.quantize import Codes, QuantizedRows
from codegen.spec import WeightFormat
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.safetensors import NUMPY_DTYPES, SafetensorsCheckpoint
from sandwich.checkpoint.source import Array, StoredTensor
from sandwich.errors import ModelError

METHOD: Final = "sandwich"
CONFIG_KEY: Final = "quantization_config"
HEAD_KEY: Final = "lm_head_tensor"
CODES: Final = "codes"  # in the place of a dtype
_FLOATS: Final = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


@dataclass(frozen=True)
class CodedFormats:
    """The formats of the layers' matrices and of the tensor `head`."""

    layers: WeightFormat
    lm_head: WeightFormat
    head: str

    def fields(self) -> dict[str, Any]:
        """What config.json says of them."""
        formats = {"layers": asdict(self.layers), "lm_head": asdict(self.lm_head)}
        return {"quant_method": METHOD, **formats, HEAD_KEY: self.head}


def read_formats(stored: Fields) -> CodedFormats:
    """The formats that a config.json's `quantization_config` names. ModelError for one that is not
    made.
    """
    return CodedFormats(
        _read_format(stored, "layers"), _read_format(stored, "lm_head"), str(stored.get(HEAD_KEY))
    )


def _read_format(stored: Fields, name: str) -> WeightFormat:
    part = stored.object(name)
    try:
        found = WeightFormat(**{key: part.get(key) for key in part})
    except (TypeError, ValueError) as error:
        raise stored.error(name, f"no such format is made: {error}") from None
    if not found.group or found.has_zero_points:
        raise stored.error(name, "a format with groups and without zero points is needed")
    return found


def packed_bytes(codes: Codes, bits: int) -> Codes:
    """Codes (n, k) as they are stored; k is even where they have 4 bits."""
    return codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << np.uint8(4)


def _codes_of(packed: Codes, bits: int) -> Codes:
    """`packed_bytes` the other way round."""
    if bits == 8:
        return packed
    return np.stack((packed & 0xF, packed >> 4), axis=2).reshape(len(packed), -1)


class CodedCheckpoint(SafetensorsCheckpoint):
    """The tensors of a folder that holds matrices as codes, which `tensors` has by their names."""

    dtypes = (*NUMPY_DTYPES, CODES)

    def __init__(self, folder: Path, formats: CodedFormats) -> None:
        """Raises ModelError as SafetensorsCheckpoint does, or if a part of a matrix is missing, or
        has another type or shape than the format says.
        """
        super().__init__(folder)
        self._parts: dict[str, dict[str, StoredTensor]] = {}
        for name in [name for name in self.tensors if name.endswith(f".{CODES}")]:
            matrix = name.removesuffix(f".{CODES}")
            weights = formats.lm_head if matrix == formats.head else formats.layers
            self.tensors[matrix] = self._matrix(matrix, weights)

    def _matrix(self, name: str, weights: WeightFormat) -> StoredTensor:
        """The matrix `name`, whose parts it takes the place of."""
        codes = self.tensors.pop(f"{name}.{CODES}")
        shape = (*codes.shape, 0)[:2]
        n, k = shape[0], shape[1] * 8 // weights.bits
        scales = _FLOATS[weights.scale_dtype], (n, -(-k // weights.group))
        wanted = {CODES: ("U8", codes.shape), "scales": scales}
        if weights.has_minima:
            wanted["minima"] = scales
        parts = {CODES: codes}
        for part, form in wanted.items():
            tensor = codes if part == CODES else self.tensors.pop(f"{name}.{part}", None)
            if tensor is None or (tensor.dtype, tensor.shape) != form or len(tensor.shape) != 2:
                found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                raise ModelError(
                    f"{codes.file}: {name} is no matrix of {weights.name}: its {part} are {found}; "
                    "quantise the model again"
                )
            parts[part] = tensor
        self._parts[name] = parts
        nbytes = sum(tensor.nbytes for tensor in parts.values())
        return StoredTensor(CODES, (n, k), codes.file, codes.offset, nbytes, weights)

    def read_codes(
        self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]
    ) -> QuantizedRows:
        """Rows [start, stop) of a matrix as they are stored."""
        weights = self.tensors[name].codes
        assert weights is not None, name

        def read(part: str) -> Array:
            tensor = self._parts[name][part]
            dtype = np.dtype(np.uint8) if part == CODES else NUMPY_DTYPES[tensor.dtype]
            rows = np.empty((stop - start, tensor.shape[1]), dtype)
            row_nbytes = tensor.shape[1] * dtype.itemsize
            self._files.read(
                tensor.file, tensor.offset + start * row_nbytes, rows.reshape(-1).view(np.uint8)
            )
            return rows

        codes = _codes_of(read(CODES).astype(np.uint8, copy=False), weights.bits)
        minima = widen(read("minima")) if weights.has_minima else None
        return QuantizedRows(codes, widen(read("scales")), minima=minima)

    def read_rows(self, name: str, start: int, stop: int, buffer: npt.NDArray[np.uint8]) -> Array:
        """As Checkpoint says; the values of codes as float32."""
        weights = self.tensors[name].codes
        if weights is None:
            return super().read_rows(name, start, stop, buffer)
        return self.read_codes(name, start, stop, buffer).dequantized(weights)
