"""Rounding weights to 8 or 4 bits, in NumPy: the nearest code, one scale per row or group of a row.

Values only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Floats, from_storage, round_up, to_storage
from codegen.spec import WeightFormat

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a matrix in a quantised format: value = (code - zero point) * scale, or
    code * scale + minimum.

    codes: uint8 (rows, k), below 2 ** bits. scales: float32 (rows, groups), values that the
    format's scale_dtype can hold. zero_points: uint8 (rows, groups), or None for a format without,
    whose zero point is `format.zero_code` everywhere. minima: float32 (rows, groups) like scales,
    for formats that have them.

    Codes of other programs' files are kept bit for bit where they have such a form. Of GGUF: Q8_0
    is int8 codes plus 128, group 32, float16 scales; Q4_0 is int4, group 32, float16 scales; Q4_1
    is the same with minima; Q4_K is int4, group 32, float32 scales d * sc and minima -dmin * m,
    whose products are exact; Q5_K and Q5_1 are the last two in int8.
    """

    codes: Codes
    scales: Floats
    zero_points: Codes | None = None
    minima: Floats | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> QuantizedRows:
        """Some of the rows."""
        zeros = None if self.zero_points is None else self.zero_points[rows]
        minima = None if self.minima is None else self.minima[rows]
        return QuantizedRows(self.codes[rows], self.scales[rows], zeros, minima)

    def dequantized(self, weights: WeightFormat) -> Floats:
        """The values, float32 (rows, k)."""
        rows, k = self.codes.shape
        group = weights.group or k
        padded = np.zeros((rows, round_up(k, group)), np.int16)
        padded[:, :k] = self.codes
        groups = padded.reshape(rows, -1, group)
        if self.zero_points is None:
            groups -= np.int16(weights.zero_code)
        else:
            groups -= self.zero_points[..., None]
        values = groups.astype(np.float32) * self.scales[..., None]
        if self.minima is not None:
            values += self.minima[..., None]
        return values.reshape(rows, -1)[:, :k]


def quantize(rows: Floats, weights: WeightFormat) -> QuantizedRows:
    """`rows` (r, k) rounded to the nearest codes of `weights`, a quantised format.

    int8: the largest magnitude of a group becomes 127. int4: the value of the largest magnitude
    becomes -8, so that its scale may be negative (as Q4_0 of llama.cpp does). With zero points, the
    range from the least to the greatest value, and zero, is cut evenly; with minima, the range from
    the least to the greatest value. A last group may be short.
    """
    count, k = rows.shape
    group = weights.group or k
    padded = np.empty((count, round_up(k, group)), np.float32)
    padded[:, :k] = rows
    padded[:, k:] = rows[:, -1:]  # a value that the last group has already
    groups = padded.reshape(count, -1, group)
    starts = np.arange(0, padded.shape[1], group)  # several times faster than a short last axis
    low, high = (f.reduceat(padded, starts, axis=1) for f in (np.minimum, np.maximum))
    lowest, largest = 0, 2**weights.bits - 1
    minima = _rounded(low, weights) if weights.has_minima else None
    if minima is not None:
        scales = _rounded((high - minima) / np.float32(largest), weights)
        zeros = np.zeros_like(scales)
        groups -= minima[..., None]
    elif weights.has_zero_points:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = _rounded((high - low) / np.float32(largest), weights)
        zeros = np.clip(np.rint(-low * _inverse(scales)), 0, largest)
    else:
        extreme = np.where(-low > high, low, high)
        scales = _rounded(np.abs(extreme) / 127 if weights.bits == 8 else extreme / -8, weights)
        zeros = np.full_like(scales, weights.zero_code)
        lowest = 1 if weights.bits == 8 else 0
    groups *= _inverse(scales)[..., None]
    np.rint(groups, out=groups)
    groups += zeros[..., None]
    np.clip(groups, lowest, largest, out=groups)
    codes = padded[:, :k].astype(np.uint8)
    has_zeros = weights.has_zero_points
    return QuantizedRows(codes, scales, zeros.astype(np.uint8) if has_zeros else None, minima)


def _rounded(scales: npt.NDArray[np.floating[Any]], weights: WeightFormat) -> Floats:
    """The scales as their dtype holds them."""
    return from_storage(
        to_storage(scales.astype(np.float32), weights.scale_dtype), weights.scale_dtype
    )


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 for 0."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
