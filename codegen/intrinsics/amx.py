"""AMX: products of tiles, 16 rows of A by 16 words of K by 16 columns of W, one instruction each.

Tiles 0 to 3 hold a block of 2 x 2 products, 4 and 5 their rows of A, 6 and 7 their columns of W.
A tile has up to 16 rows of 64 bytes; the numbers of tiles are part of an instruction, so there is
a function for each. A packed panel is as the instructions want it: row k of a tile of W is word k
of 16 columns. Nothing here runs where the kernel has not granted tiles (platforms.amx).
"""

from __future__ import annotations

import numpy as np

from codegen.intrinsics.base import Intrinsic, words_hi, words_lo
from codegen.intrinsics.integers import dot_bytes

TILE_ROWS = 16
TILE_WORDS = 16  # int32 or float32 of a row
NUM_TILES = 8


def tile_rows(low: int, high: int) -> list[int]:
    """Rows of every tile, where the products have `low` rows above and `high` below."""
    return [low, low, high, high, low, high, TILE_ROWS, TILE_ROWS]


def tile_load(memory: np.ndarray, stride: int, rows: int) -> np.ndarray:
    """(rows, 16) words, `stride` bytes from row to row"""
    return np.lib.stride_tricks.as_strided(memory, (rows, TILE_WORDS), (stride, memory.itemsize))


def tile_store(tile: np.ndarray, memory: np.ndarray, stride: int) -> None:
    """the inverse of tile_load"""
    tile_load(memory, stride, len(tile))[...] = tile


def tile_dot_bf16(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c (rows, 16) float32 + a (rows, 16) bf16 pairs times b (16, 16) bf16 pairs

    The sums of the even and of the odd values are rounded apart, then added, then added to c.
    """
    even, odd = words_lo(a) @ words_lo(b), words_hi(a) @ words_hi(b)
    return c + (even + odd)


def tile_dot_u8(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """c (rows, 16) int32 + a (rows, 16) quads of signed bytes times b (16, 16) of unsigned ones"""
    for k in range(TILE_WORDS):
        c = np.stack([dot_bytes(row, a[i, k : k + 1], b[k], "uint8") for i, row in enumerate(c)])
    return c


# 64 bytes: palette 1, bytes of a row of each tile from byte 16 on, rows from byte 48 on.
CONFIG = Intrinsic(
    "sw_tile_config",
    "int32",
    """
declare void @llvm.x86.ldtilecfg(ptr)
define i32 @sw_tile_config(i32 %low, i32 %high) alwaysinline {
  %config = alloca [64 x i8], align 64
  store [64 x i8] zeroinitializer, ptr %config
  store i8 1, ptr %config
  %widths = getelementptr i8, ptr %config, i64 16
  store <8 x i16> splat (i16 64), ptr %widths
  %l = trunc i32 %low to i8
  %h = trunc i32 %high to i8
  %r0 = insertelement <8 x i8> splat (i8 16), i8 %l, i32 0
  %r1 = insertelement <8 x i8> %r0, i8 %l, i32 1
  %r2 = insertelement <8 x i8> %r1, i8 %h, i32 2
  %r3 = insertelement <8 x i8> %r2, i8 %h, i32 3
  %r4 = insertelement <8 x i8> %r3, i8 %l, i32 4
  %r5 = insertelement <8 x i8> %r4, i8 %h, i32 5
  %rows = getelementptr i8, ptr %config, i64 48
  store <8 x i8> %r5, ptr %rows
  call void @llvm.x86.ldtilecfg(ptr %config)
  ret i32 0
}""",
    tile_rows,
)

RELEASE = Intrinsic(
    "sw_tile_release",
    "int32",
    """
declare void @llvm.x86.tilerelease()
define i32 @sw_tile_release() alwaysinline {
  call void @llvm.x86.tilerelease()
  ret i32 0
}""",
    lambda: None,
)

_LOAD = """
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
define i32 @sw_tile_load_TILE(ptr %p, i64 %stride) alwaysinline {
  call void @llvm.x86.tileloadd64(i8 TILE, ptr %p, i64 %stride)
  ret i32 0
}"""

_STORE = """
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
define i32 @sw_tile_store_TILE(ptr %p, i64 %stride) alwaysinline {
  call void @llvm.x86.tilestored64(i8 TILE, ptr %p, i64 %stride)
  ret i32 0
}"""

_DOT = """
declare void @llvm.x86.OPCODE(i8 immarg, i8 immarg, i8 immarg)
define i32 @NAME() alwaysinline {
  call void @llvm.x86.OPCODE(i8 PRODUCT, i8 ROWS, i8 COLUMNS)
  ret i32 0
}"""


def product_tile(i: int, j: int) -> int:
    """The tile of row block i times column block j."""
    return 2 * i + j


def rows_tile(i: int) -> int:
    """The tile of row block i of A."""
    return 4 + i


def columns_tile(j: int) -> int:
    """The tile of column block j of W."""
    return 6 + j


def _dot(kind: str, opcode: str, i: int, j: int) -> Intrinsic:
    name = f"sw_tile_dot_{kind}_{product_tile(i, j)}"
    text = _DOT.replace("OPCODE", opcode).replace("NAME", name)
    for word, tile in {
        "PRODUCT": product_tile(i, j),
        "ROWS": rows_tile(i),
        "COLUMNS": columns_tile(j),
    }.items():
        text = text.replace(word, str(tile))
    return Intrinsic(name, "int32", text, tile_dot_bf16 if kind == "bf16" else tile_dot_u8)


def _move(name: str, text: str, tile: int) -> Intrinsic:
    meaning = tile_load if text is _LOAD else tile_store
    return Intrinsic(f"{name}_{tile}", "int32", text.replace("TILE", str(tile)), meaning)


_BLOCKS = [(i, j) for i in range(2) for j in range(2)]

SPELLINGS: tuple[Intrinsic, ...] = (
    CONFIG,
    RELEASE,
    *(_move("sw_tile_load", _LOAD, tile) for tile in range(NUM_TILES)),
    *(_move("sw_tile_store", _STORE, product_tile(i, j)) for i, j in _BLOCKS),
    *(_dot("bf16", "tdpbf16ps", i, j) for i, j in _BLOCKS),
    *(_dot("u8", "tdpbsud", i, j) for i, j in _BLOCKS),  # A signed, W unsigned
)
