"""Codes of a matrix with a scale, and perhaps a zero point, for each group of its inputs.

Values only: what files of other programs hold, before anything of ours is made of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codegen.layout.arrays import Floats
from codegen.layout.quantize import Codes, QuantizedRows
from codegen.spec import GROUP_SIZES, WeightFormat

BITS: Final = (2, 3, 4, 5, 6, 7, 8)  # of codes that are read
SCALE_DTYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def unpack_bits(words: npt.NDArray[Any], bits: int, count: int) -> Codes:
    """The first `count` codes of each row of int32 words (rows, w): a string of bits, the lowest
    bits of the first word first.
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw[:, :count]
    if bits == 4:
        pairs = np.stack((raw & np.uint8(0xF), raw >> np.uint8(4)), axis=2)
        return pairs.reshape(len(raw), -1)[:, :count]
    single = np.unpackbits(raw, axis=1, count=count * bits, bitorder="little")
    places = np.uint8(1) << np.arange(bits, dtype=np.uint8)
    codes: Codes = np.einsum("nkb,b->nk", single.reshape(len(raw), count, bits), places)
    return codes


@dataclass(frozen=True)
class Grid:
    """Rows of a matrix: value = (code - zero point) * scale, both of the column's group.

    codes: (rows, k), below 2 ** bits. scales: (rows, groups). zeros: (rows, groups) int32; None if
    all are 2 ** (bits - 1). group_of: (k,), the group of each column; None for groups of
    neighbours, all of one size but for a shorter last one.
    """

    bits: int
    group: int  # columns that share a scale
    codes: Codes
    scales: Floats
    zeros: npt.NDArray[np.int32] | None = None
    group_of: npt.NDArray[np.int32] | None = None

    def values(self) -> Floats:
        """float32 (rows, k)."""
        columns = self.group_of
        if columns is None:
            columns = np.arange(self.codes.shape[1], dtype=np.int32) // np.int32(self.group)
        centred = self.codes.astype(np.int32)
        centred -= 1 << (self.bits - 1) if self.zeros is None else self.zeros[:, columns]
        values: Floats = centred.astype(np.float32)
        values *= self.scales[:, columns]
        return values

    def rows(self, weights: WeightFormat) -> QuantizedRows:
        """The same codes in a format that `form_of` gave."""
        assert self.group_of is None, self
        shift = 0 if self.zeros is not None else weights.zero_code - (1 << (self.bits - 1))
        zeros = None if self.zeros is None else self.zeros.astype(np.uint8)
        rows = QuantizedRows(self.codes + np.uint8(shift), self.scales, zeros)
        if not weights.group or weights.group == self.group:
            return rows
        count = -(-self.codes.shape[1] // weights.group)

        def repeated(each: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.repeat(each, -(-self.group // weights.group), axis=1)[:, :count]

        return replace(
            rows,
            scales=repeated(self.scales),
            zero_points=None if zeros is None else repeated(zeros),
        )


def form_of(
    bits: int, group: int, scale_dtype: str, has_zeros: bool, activations: str = "float"
) -> WeightFormat | None:
    """The format that holds such a grid bit for bit; None if there is none.

    group: columns that share a scale, 0 for all. One that is wider than ours is several of ours
    with one scale; so are rows with a zero point.
    """
    if bits not in BITS or scale_dtype not in SCALE_DTYPES:
        return None
    if not group:
        ours = max(GROUP_SIZES) if has_zeros else 0
    else:
        ours = max((size for size in GROUP_SIZES if group % size == 0), default=-1)
    if ours < 0:
        return None
    return WeightFormat(
        "int4" if bits <= 4 else "int8",
        activations=activations,
        group=ours,
        scale_dtype=SCALE_DTYPES[scale_dtype],
        has_zero_points=has_zeros,
    )
