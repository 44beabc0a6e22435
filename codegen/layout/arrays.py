"""Arrays as kernels see them: their specs, and 16-bit floats held as uint16 bit patterns.

NumPy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from platforms.memory import ALIGNMENT

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
DTYPES = ("float32", "bfloat16")  # of weights that are not quantised
FLOAT_DTYPES = (*DTYPES, "float16")  # of scales


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def bf16_from_float32(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round to the nearest bf16, ties to even; infinities stay, NaNs stay (quiet) NaNs."""
    floats = np.ascontiguousarray(values, np.float32)
    bits = floats.view(np.uint32)
    rounded = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    rounded += bits
    rounded >>= 16
    halves = rounded.astype(np.uint16)
    is_nan = np.isnan(floats)
    if is_nan.any():
        halves[is_nan] = (bits[is_nan] >> 16).astype(np.uint16) | np.uint16(0x40)
    return halves


def float32_from_bf16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Widen uint16 bf16 bit patterns; exact."""
    return (halves.astype(np.uint32) << 16).view(np.float32)


def widen(values: Array) -> npt.NDArray[np.float32]:
    """float32 of values held as float32 or as uint16 bf16 bit patterns."""
    if values.dtype == np.uint16:
        return float32_from_bf16(values.astype(np.uint16, copy=False))
    return values.astype(np.float32, copy=False)


def storage_dtype(dtype: str) -> np.dtype[np.generic]:
    """The NumPy dtype that holds one value of a type of FLOAT_DTYPES; 16 bits are uint16."""
    return np.dtype(np.float32 if dtype == "float32" else np.uint16)


def to_storage(values: Floats, dtype: str) -> Array:
    """float32 rounded to the nearest value of `dtype`, as `storage_dtype` holds it."""
    if dtype == "bfloat16":
        return bf16_from_float32(values)
    return values.astype(np.float16).view(np.uint16) if dtype == "float16" else values


def from_storage(stored: Array, dtype: str) -> Floats:
    """float32 of what `to_storage` gave; exact."""
    if dtype == "float16":
        return np.ascontiguousarray(stored).view(np.float16).astype(np.float32)
    return widen(stored)


@dataclass(frozen=True)
class TensorSpec:
    """Shape and NumPy dtype of one array of an arena."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def arena_nbytes(self) -> int:
        """Bytes it takes in an arena, where every array starts on an `ALIGNMENT` boundary."""
        return round_up(self.nbytes, ALIGNMENT)
