"""Weights in FP8 (E4M3 without infinities, arXiv 2209.05433) with scales, widened to float32.

A scale is that of the whole matrix, of an output, or of a block of outputs and inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from codegen.layout.arrays import Floats
from sandwich.checkpoint.fields import Fields
from sandwich.checkpoint.quantized.folder import Parts
from sandwich.checkpoint.quantized.grid import SCALE_DTYPES
from sandwich.checkpoint.source import StoredTensor

DTYPE: Final = "F8_E4M3"


def _values() -> Floats:
    """The value of each byte: sign, four bits of exponent from 2^-7 on, three of mantissa."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, (code & 7) / 8
    normal, small = np.ldexp(1 + mantissa, exponent - 7), np.ldexp(mantissa, -6)
    values = np.where(exponent > 0, normal, small) * np.where(code & 128, -1, 1)
    values[(code & 127) == 127] = np.nan
    return values.astype(np.float32)


_VALUES: Final = _values()


def fp8_matrix(parts: Parts, scale: str, block: tuple[int, int]) -> StoredTensor:
    """`weight` with the scales in the part `scale` as a matrix; ModelError if they do not fit.

    block: outputs and inputs that share a scale, where there is not one for each or one for all.
    """
    codes = parts.tensor("weight", DTYPE)
    parts.tensor(scale, *SCALE_DTYPES)
    if len(codes.shape) != 2:
        raise parts.error(f"weight is {list(codes.shape)}; a matrix is needed")
    _shared(parts, scale, block)
    return StoredTensor("FP8", codes.shape, codes.file, codes.offset, codes.nbytes)


def _shared(parts: Parts, scale: str, block: tuple[int, int]) -> tuple[int, int]:
    """Outputs and inputs that share a scale."""
    sizes, found = parts.tensors["weight"].shape, parts.tensors[scale].shape
    shared = []
    for size, of, count in zip(sizes, block, (*found, 1, 1)[:2], strict=True):
        fitting = [each for each in (size, 1, of) if each and -(-size // each) == count]
        if not fitting or len(found) > 2:
            raise parts.error(f"{scale} is {list(found)}, which does not fit {list(sizes)}")
        shared.append(fitting[0])
    return shared[0], shared[1]


def read_fp8(parts: Parts, scale: str, block: tuple[int, int], start: int, stop: int) -> Floats:
    """Rows [start, stop) of what `fp8_matrix` gave, float32."""
    of_rows, of_columns = _shared(parts, scale, block)
    scales = parts.floats(scale)
    scales = scales.reshape(len(scales), -1)[np.arange(start, stop) // of_rows]
    if scales.shape[1] > 1:
        scales = scales[:, np.arange(parts.tensors["weight"].shape[1]) // of_columns]
    values: Floats = _VALUES[parts.rows("weight", start, stop)] * scales
    return values


@dataclass(frozen=True)
class Fp8:
    """`quant_method` "fp8", as transformers and the makers of models write it."""

    block: tuple[int, int]  # (0, 0): scales are not of blocks

    marks = ("weight_scale_inv", "weight_scale")
    parts = ("weight", *marks, "input_scale", "activation_scale")

    @staticmethod
    def of(stored: Fields) -> Fp8:
        """Out of `quantization_config`. ModelError for what is not read."""
        stored.choice("fmt", ("e4m3",), default="e4m3")
        return Fp8(read_block(stored, "weight_block_size"))

    def matrix(self, parts: Parts) -> StoredTensor:
        """As Method says."""
        return fp8_matrix(parts, self._scale(parts), self.block)

    def read(self, parts: Parts, start: int, stop: int) -> Floats:
        """As Method says."""
        return read_fp8(parts, self._scale(parts), self.block, start, stop)

    def _scale(self, parts: Parts) -> str:
        return next(mark for mark in self.marks if mark in parts)


def read_block(stored: Fields, key: str) -> tuple[int, int]:
    """Two sizes of a block; zeros if there are none."""
    block = stored.get(key)
    if block is None:
        return 0, 0
    if not isinstance(block, list) or [type(size) for size in block] != [int, int]:
        raise stored.error(key, "two whole numbers are needed")
    if min(block) < 1:
        raise stored.error(key, "sizes of at least 1 are needed")
    return block[0], block[1]
