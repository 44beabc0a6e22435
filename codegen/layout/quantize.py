"""Rounding weights to 8 or 4 bits, in NumPy: the nearest code, one scale per row or group of a row.

Values only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> QuantizedRows:
        """Some of the rows."""
        zeros = None if self.zero_points is None else self.zero_points[rows]
        minima = None if self.minima is None else self.minima[rows]
        return QuantizedRows(self.codes[rows], self.scales[rows], zeros, minima)

    @staticmethod
    def joined(parts: Iterable[QuantizedRows], axis: int) -> QuantizedRows:
        """Rows below each other (axis 0), or whole groups of the same rows side by side (1)."""
        every = list(parts)

        def join(of: Callable[[QuantizedRows], Any]) -> Any:
            arrays = [of(part) for part in every]
            return None if arrays[0] is None else np.concatenate(arrays, axis)

        return QuantizedRows(
            join(lambda part: part.codes),
            join(lambda part: part.scales),
            join(lambda part: part.zero_points),
            join(lambda part: part.minima),
        )

    def origins(self, weights: WeightFormat) -> Floats:
        """What is added to scaled codes, (rows, groups)."""
        if self.minima is not None:
            return self.minima
        zeros = weights.zero_code if self.zero_points is None else self.zero_points
        return -self.scales * zeros

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


# How often the grid of a group is fitted to the codes found so far. Of 4-bit groups with minima,
# three fits leave 11 % less squared error than one, and a fourth 2 % less than three.
REFITS = {4: 3, 8: 1}
VALUES_AT_ONCE = 1 << 17  # whose arrays stay in the second cache


def quantize(
    rows: Floats, weights: WeightFormat, importance: Floats | None = None
) -> QuantizedRows:
    """`rows` (r, k) rounded to the nearest codes of `weights`, a quantised format.

    int8: the largest magnitude of a group becomes 127. int4: the value of the largest magnitude
    becomes -8, so that its scale may be negative (as Q4_0 of llama.cpp does). With zero points, the
    range from the least to the greatest value, and zero, is cut evenly; with minima, the range from
    the least to the greatest value. A last group may be short.

    Groups of int4, and those with minima, then take the least sum of squared errors of several
    grids: that one, and those that fit the best codes so far by least squares, of which the first
    cuts what lies far outside. importance (k,): what the squared error of each column counts, 1
    without.
    """
    step = max(1, VALUES_AT_ONCE // rows.shape[1])
    blocks = [rows[start : start + step] for start in range(0, len(rows), step)]
    parts = [_quantize(block, weights, importance) for block in blocks or [rows]]
    return parts[0] if len(parts) == 1 else QuantizedRows.joined(parts, axis=0)


def _quantize(rows: Floats, weights: WeightFormat, importance: Floats | None) -> QuantizedRows:
    """A block of rows."""
    count, k = rows.shape
    group = weights.group or k
    padded = np.empty((count, round_up(k, group)), np.float32)
    padded[:, :k] = rows
    padded[:, k:] = rows[:, -1:]  # a value that the last group has already
    groups = _Groups.of(padded.reshape(count, -1, group), k, importance)
    starts = np.arange(0, padded.shape[1], group)  # several times faster than a short last axis
    low, high = (f.reduceat(padded, starts, axis=1) for f in (np.minimum, np.maximum))
    best = _Rounding.of(groups, _grid(low, high, weights), weights)
    if weights.group and not weights.has_zero_points:
        if weights.bits == 4 or weights.has_minima:
            for _ in range(REFITS[weights.bits]):
                best.take_better(_Rounding.of(groups, best.refitted(groups, weights), weights))
    codes = best.codes.reshape(count, -1)[:, :k]
    scales, base = best.grid
    zeros = base.astype(np.uint8) if weights.has_zero_points else None
    return QuantizedRows(codes, scales, zeros, base if weights.has_minima else None)


# The scales of groups, and their zero points or minima: (rows, groups) float32 each.
_Grid = tuple[Floats, Floats]


def _grid(low: Floats, high: Floats, weights: WeightFormat) -> _Grid:
    """The grid for groups from `low` to `high`."""
    largest = np.float32(2**weights.bits - 1)
    if weights.has_minima:
        minima = _rounded(low, weights)
        return _rounded((high - minima) / largest, weights), minima
    if weights.has_zero_points:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = _rounded((high - low) / largest, weights)
        return scales, np.clip(np.rint(-low * _inverse(scales)), 0, largest)
    extreme = np.where(-low > high, low, high)
    scales = _rounded(np.abs(extreme) / 127 if weights.bits == 8 else extreme / -8, weights)
    return scales, np.full_like(scales, weights.zero_code)


@dataclass(frozen=True)
class _Groups:
    """Values (rows, groups, group), and what their squared errors count (groups, group), None for
    1 each.
    """

    values: Floats
    importance: Floats | None

    @staticmethod
    def of(values: Floats, num_columns: int, importance: Floats | None) -> _Groups:
        """What is behind the columns counts nothing."""
        padded = np.zeros(values.shape[1] * values.shape[2], np.float32)
        if importance is None and num_columns == len(padded):
            return _Groups(values, None)
        padded[:num_columns] = 1 if importance is None else importance
        return _Groups(values, padded.reshape(values.shape[1:]))

    def weighted(self, numbers: Floats) -> Floats:
        """Numbers (rows, groups, group) times what they count."""
        return numbers if self.importance is None else numbers * self.importance

    @property
    def sizes(self) -> Floats | np.float32:
        """What all values of a group count together."""
        if self.importance is None:
            return np.float32(self.values.shape[2])
        return self.importance.sum(axis=1)


@dataclass
class _Rounding:
    """Groups rounded to codes (rows, groups, group) of a grid, and the sum of squared errors."""

    grid: _Grid
    codes: Codes
    errors: Floats  # (rows, groups)

    @staticmethod
    def of(groups: _Groups, grid: _Grid, weights: WeightFormat) -> _Rounding:
        """The nearest codes."""
        scales, base = (part[..., None] for part in grid)
        codes = groups.values - base if weights.has_minima else groups.values.copy()
        codes *= _inverse(scales)
        np.rint(codes, out=codes)
        if not weights.has_minima:
            codes += base
        np.clip(codes, *weights.code_range, out=codes)
        stored = codes.astype(np.uint8)
        if weights.has_minima:
            codes *= scales
            codes += base
        else:
            codes -= base
            codes *= scales
        codes -= groups.values
        return _Rounding(grid, stored, np.einsum("rgk,rgk->rg", codes, groups.weighted(codes)))

    def take_better(self, other: _Rounding) -> None:
        """Take those groups of `other` that have less error."""
        is_better = other.errors < self.errors
        for mine, theirs in zip(
            (*self.grid, self.errors), (*other.grid, other.errors), strict=True
        ):
            np.copyto(mine, theirs, where=is_better)
        np.copyto(self.codes, other.codes, where=is_better[..., None])

    def refitted(self, groups: _Groups, weights: WeightFormat) -> _Grid:
        """The grid that fits the codes by least squares."""
        scales, base = self.grid
        codes = self.codes.astype(np.float32)
        if not weights.has_minima:
            codes -= base[..., None]
        weighted = groups.weighted(codes)
        products = np.einsum("rgk,rgk->rg", weighted, groups.values)
        squares = np.einsum("rgk,rgk->rg", weighted, codes)
        if not weights.has_minima:
            return _rounded(products * _inverse(squares), weights), base
        sizes, sums = groups.sizes, weighted.sum(axis=2)
        totals = groups.weighted(groups.values).sum(axis=2)
        spread = sizes * squares - sums * sums  # of zero where all codes are one
        fitted = (sizes * products - sums * totals) * _inverse(spread)
        fitted = _rounded(np.where(spread > 0, fitted, scales), weights)
        return fitted, _rounded((totals - fitted * sums) / sizes, weights)


def _rounded(scales: npt.NDArray[np.floating[Any]], weights: WeightFormat) -> Floats:
    """The scales as their dtype holds them."""
    return from_storage(
        to_storage(scales.astype(np.float32), weights.scale_dtype), weights.scale_dtype
    )


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 for 0."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
