"""Blocks of GGUF files as the codes and scales they are, for the types that our formats can hold.

Source: ggml's block layouts. A block of 4 bits has values 0 to 15 in its low nibbles and 16 to 31
in its high ones; K types have eight groups of 32 in a block, whose 6-bit scales share two floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from codegen.layout.quantize import Codes, QuantizedRows
from codegen.spec import WeightFormat

Blocks = npt.NDArray[np.uint8]  # (rows, blocks, bytes)
Floats = npt.NDArray[np.float32]

_LOW, _FOUR = np.uint8(0xF), np.uint8(4)
_FLOAT16: Final[dict[str, Any]] = {"group": 32, "scale_dtype": "float16"}
_FLOAT32: Final[dict[str, Any]] = {"group": 32, "scale_dtype": "float32", "has_minima": True}


def read_blocks(raw: npt.NDArray[np.uint8], dtype: str) -> QuantizedRows:
    """Rows of bytes, (rows, row_nbytes), of a type in FORMATS."""
    read, nbytes = _READERS[dtype]
    return read(raw.reshape(len(raw), -1, nbytes))


def _float16(blocks: Blocks, at: int) -> Floats:
    """The float16 at byte `at` of every block, (rows, blocks)."""
    halves = np.ascontiguousarray(blocks[:, :, at : at + 2]).view(np.float16)
    return halves[:, :, 0].astype(np.float32)


def _nibbles(packed: Blocks) -> Codes:
    """Bytes (rows, blocks, n) as codes (rows, blocks, 2, n): all low nibbles, then the high."""
    return np.stack((packed & _LOW, packed >> _FOUR), axis=2)


def _joined(codes: Codes) -> Codes:
    """One axis for a row's codes."""
    return codes.reshape(len(codes), -1)


def _q4_0(blocks: Blocks) -> QuantizedRows:
    return QuantizedRows(_joined(_nibbles(blocks[:, :, 2:])), _float16(blocks, 0))


def _q4_1(blocks: Blocks) -> QuantizedRows:
    codes = _joined(_nibbles(blocks[:, :, 4:]))
    return QuantizedRows(codes, _float16(blocks, 0), minima=_float16(blocks, 2))


def _q5_0(blocks: Blocks) -> QuantizedRows:
    codes = _joined(_nibbles(blocks[:, :, 6:]).reshape(*blocks.shape[:2], 32) | _fifth(blocks, 2))
    return QuantizedRows(codes + np.uint8(128 - 16), _float16(blocks, 0))


def _q5_1(blocks: Blocks) -> QuantizedRows:
    codes = _nibbles(blocks[:, :, 8:]).reshape(*blocks.shape[:2], 32) | _fifth(blocks, 4)
    return QuantizedRows(_joined(codes), _float16(blocks, 0), minima=_float16(blocks, 2))


def _fifth(blocks: Blocks, at: int) -> Codes:
    """The fifth bits of 32 codes, which stand in four bytes, in their place."""
    bits = np.unpackbits(blocks[:, :, at : at + 4], axis=2, bitorder="little")
    return bits << _FOUR


def _q8_0(blocks: Blocks) -> QuantizedRows:
    return QuantizedRows(_joined(blocks[:, :, 2:] ^ np.uint8(0x80)), _float16(blocks, 0))


def _q4_k(blocks: Blocks) -> QuantizedRows:
    quads = blocks[:, :, 16:].reshape(*blocks.shape[:2], 4, 32)
    codes = np.stack((quads & _LOW, quads >> _FOUR), axis=3)  # two groups of 32 share their bytes
    return QuantizedRows(_joined(codes), *_k_scales(blocks))


def _q5_k(blocks: Blocks) -> QuantizedRows:
    quads = blocks[:, :, 48:].reshape(*blocks.shape[:2], 4, 32)
    groups = np.stack((quads & _LOW, quads >> _FOUR), axis=3).reshape(*blocks.shape[:2], 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[:, None]
    fifth: Codes = (blocks[:, :, None, 16:48] >> shifts & np.uint8(1)) << _FOUR  # bit g: group g
    codes: Codes = groups | fifth
    return QuantizedRows(_joined(codes), *_k_scales(blocks))


def _k_scales(blocks: Blocks) -> tuple[Floats, None, Floats]:
    """Scales, no zero points, and minima of the eight groups of each block."""
    packed = blocks[:, :, 4:16]
    first, second, third = packed[:, :, :4], packed[:, :, 4:8], packed[:, :, 8:]
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=2)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=2)
    rows = len(blocks)
    return (
        (_float16(blocks, 0)[:, :, None] * scales).reshape(rows, -1),
        None,
        (-_float16(blocks, 2)[:, :, None] * minima).reshape(rows, -1),
    )


# Type -> what holds its codes and scales bit for bit.
FORMATS: Final = {
    "Q4_0": WeightFormat("int4", **_FLOAT16),
    "Q4_1": WeightFormat("int4", **_FLOAT16, has_minima=True),
    "Q5_0": WeightFormat("int8", **_FLOAT16),
    "Q5_1": WeightFormat("int8", **_FLOAT16, has_minima=True),
    "Q8_0": WeightFormat("int8", **_FLOAT16),
    "Q4_K": WeightFormat("int4", **_FLOAT32),
    "Q5_K": WeightFormat("int8", **_FLOAT32),
}
_READERS: Final[dict[str, tuple[Callable[[Blocks], QuantizedRows], int]]] = {
    "Q4_0": (_q4_0, 18),
    "Q4_1": (_q4_1, 20),
    "Q5_0": (_q5_0, 22),
    "Q5_1": (_q5_1, 24),
    "Q8_0": (_q8_0, 34),
    "Q4_K": (_q4_k, 144),
    "Q5_K": (_q5_k, 176),
}
