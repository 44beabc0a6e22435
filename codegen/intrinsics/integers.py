"""Products and sums of small integers, and how activations become such: spelled in portable LLVM IR.

An ISA replaces what it spells better. Bytes travel four in an int32 lane, the first in its lowest
byte; integers and sums of 16 bits two in a lane.
"""

from __future__ import annotations

import numpy as np

from codegen.intrinsics.base import Intrinsic
from codegen.layout.operands import PAIRS_OF_QUAD


def dot_bytes(acc: np.ndarray, a: np.ndarray, w: np.ndarray, dtype: str) -> np.ndarray:
    """acc + the sum over four bytes of signed a times w, whose bytes are of `dtype`"""
    products = a.view(np.int8).astype(np.int32) * w[:, None].view(dtype).astype(np.int32)
    return acc + products.sum(axis=1, dtype=np.int32)


def round_int(x: np.ndarray) -> np.ndarray:
    """the nearest integer, ties to even, for magnitudes up to 2**22"""
    return np.rint(x).astype(np.int32)


def dot_pairs(acc: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """acc + the sum over two 16-bit integers of a times w"""
    products = a.view(np.int16).astype(np.int32) * w[:, None].view(np.int16).astype(np.int32)
    return acc + products.sum(axis=1, dtype=np.int32)


def short_u4(sums: np.ndarray, a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """16-bit sums, two in a lane, plus sums over two bytes of signed a times nibbles of w"""
    products = a.view(np.int8).astype(np.int16) * w[:, None].view(np.uint8).astype(np.int16)
    pairs = products.reshape(-1, 2).sum(axis=1, dtype=np.int16)
    return (sums.view(np.int16) + pairs).view(np.int32)


def add_short(acc: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """acc + both 16-bit sums of each lane"""
    return acc + sums[:, None].view(np.int16).sum(axis=1, dtype=np.int32)


DOT_PAIRS = Intrinsic(
    "sw_dot_pairs",
    "int32x$L",
    """
define <$L x i32> @sw_dot_pairs(<$L x i32> %acc, i32 %a, <$L x i32> %w) alwaysinline {
  %s = insertelement <$L x i32> poison, i32 %a, i32 0
  %v = shufflevector <$L x i32> %s, <$L x i32> poison, <$L x i32> zeroinitializer
  %ah = bitcast <$L x i32> %v to <$D x i16>
  %wh = bitcast <$L x i32> %w to <$D x i16>
  %aw = sext <$D x i16> %ah to <$D x i32>
  %ww = sext <$D x i16> %wh to <$D x i32>
  %p = mul <$D x i32> %aw, %ww
  %e = shufflevector <$D x i32> %p, <$D x i32> poison, <$L x i32> $EVEN
  %o = shufflevector <$D x i32> %p, <$D x i32> poison, <$L x i32> $ODD
  %q = add <$L x i32> %e, %o
  %r = add <$L x i32> %acc, %q
  ret <$L x i32> %r
}""",
    dot_pairs,
)

ODD_BYTES = Intrinsic(
    "sw_odd_bytes",
    "int32x$L",
    """
define <$L x i32> @sw_odd_bytes(<$L x i32> %w) alwaysinline {
  %h = bitcast <$L x i32> %w to <$D x i16>
  %o = lshr <$D x i16> %h, splat (i16 8)
  %r = bitcast <$D x i16> %o to <$L x i32>
  ret <$L x i32> %r
}""",
    lambda w: (w.view(np.uint16) >> 8).view(np.int32),
)

PACK_PAIRS = Intrinsic(
    "sw_pack_pairs",
    "int32x$H",
    """
define <$H x i32> @sw_pack_pairs(<$L x i32> %x) alwaysinline {
  %t = trunc <$L x i32> %x to <$L x i16>
  %p = shufflevector <$L x i16> %t, <$L x i16> poison, <$L x i32> $PAIRS
  %w = bitcast <$L x i16> %p to <$H x i32>
  ret <$H x i32> %w
}""",
    lambda x: x.astype(np.int16).reshape(-1, 4)[:, PAIRS_OF_QUAD].ravel().view(np.int32),
)

# Bytes as 16-bit numbers, the even ones and the odd ones, times those of `a`; LLVM makes one
# multiplication of pairs of such a sum where the ISA has one.
_DOT_BYTES = """
define <$L x i32> @NAME(<$L x i32> %acc, i32 %a, <$L x i32> %w) alwaysinline {
  %s = insertelement <$L x i32> poison, i32 %a, i32 0
  %v = shufflevector <$L x i32> %s, <$L x i32> poison, <$L x i32> zeroinitializer
  %ah = bitcast <$L x i32> %v to <$D x i16>
  %wh = bitcast <$L x i32> %w to <$D x i16>
  %ashl = shl <$D x i16> %ah, splat (i16 8)
  %wshl = shl <$D x i16> %wh, splat (i16 8)
  %a0 = ashr <$D x i16> %ashl, splat (i16 8)
  %w0 = SHIFT <$D x i16> %wshl, splat (i16 8)
  %a1 = ashr <$D x i16> %ah, splat (i16 8)
  %w1 = SHIFT <$D x i16> %wh, splat (i16 8)
  %a0w = sext <$D x i16> %a0 to <$D x i32>
  %w0w = sext <$D x i16> %w0 to <$D x i32>
  %a1w = sext <$D x i16> %a1 to <$D x i32>
  %w1w = sext <$D x i16> %w1 to <$D x i32>
  %p0 = mul <$D x i32> %a0w, %w0w
  %p1 = mul <$D x i32> %a1w, %w1w
  %p0e = shufflevector <$D x i32> %p0, <$D x i32> poison, <$L x i32> $EVEN
  %p0o = shufflevector <$D x i32> %p0, <$D x i32> poison, <$L x i32> $ODD
  %p1e = shufflevector <$D x i32> %p1, <$D x i32> poison, <$L x i32> $EVEN
  %p1o = shufflevector <$D x i32> %p1, <$D x i32> poison, <$L x i32> $ODD
  %q0 = add <$L x i32> %p0e, %p0o
  %q1 = add <$L x i32> %p1e, %p1o
  %q = add <$L x i32> %q0, %q1
  %r = add <$L x i32> %acc, %q
  ret <$L x i32> %r
}"""


def _dot(name: str, dtype: str) -> Intrinsic:
    shift = "ashr" if dtype == "int8" else "lshr"
    text = _DOT_BYTES.replace("NAME", name).replace("SHIFT", shift)
    return Intrinsic(name, "int32x$L", text, lambda acc, a, w: dot_bytes(acc, a, w, dtype))


# The bytes of `a` are signed, within [-127, 127]. Those of w are: at most 15 (u4); any unsigned
# ones (u8), only on rows with `has_u8_dot`; signed ones (s8), only on rows with `has_s8_dot`.
DOT_U4 = _dot("sw_dot_u4", "uint8")
DOT_U8 = _dot("sw_dot_u8", "uint8")
DOT_S8 = _dot("sw_dot_s8", "int8")

# The 1.5 * 2**23 trick: the sum's last bit is a unit, and rounding is that of the addition.
ROUND_INT = Intrinsic(
    "sw_round_int",
    "int32x$L",
    """
define <$L x i32> @sw_round_int(<$L x float> %x) alwaysinline {
  %t = fadd <$L x float> %x, splat (float 0x4168000000000000)
  %b = bitcast <$L x float> %t to <$L x i32>
  %r = sub <$L x i32> %b, splat (i32 1262485504)
  ret <$L x i32> %r
}""",
    round_int,
)

PACK_S8 = Intrinsic(
    "sw_pack_s8",
    "int32x$Q",
    """
define $QT @sw_pack_s8(<$L x i32> %x) alwaysinline {
  %t = trunc <$L x i32> %x to <$L x i8>
  %w = bitcast <$L x i8> %t to $QT
  ret $QT %w
}""",
    lambda x: x.astype(np.int8).view(np.int32),
)

PORTABLE: tuple[Intrinsic, ...] = (
    *(DOT_U4, DOT_PAIRS, ODD_BYTES, PACK_PAIRS),
    *(ROUND_INT, PACK_S8),
)
