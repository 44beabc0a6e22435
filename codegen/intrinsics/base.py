"""Intrinsics every ISA shares, spelled in portable LLVM IR for vectors of any number of lanes.

An intrinsic is its meaning (a NumPy function, the truth of its test) and its spelling (LLVM IR text
that TVM imports and LLVM inlines). `$L` is the number of float32 lanes, `$H` half and `$Q` a quarter
of it. bf16 pairs travel as int32 lanes, the value with the even index in the low half. An ISA file
replaces spellings, never meanings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from codegen.layout.arrays import bf16_from_float32, float32_from_bf16
from codegen.layout.operands import PAIRS_OF_QUAD


@dataclass(frozen=True)
class Intrinsic:
    """One function: `result` is its TVM dtype, `spelling` its IR definition, `meaning` its truth in
    NumPy.
    """

    name: str
    result: str
    spelling: str
    meaning: Callable[..., Any]

    def text(self, lanes: int) -> str:
        """The IR definition for `lanes` float32 lanes."""
        return Template(self.spelling).substitute(_sizes(lanes))

    def dtype(self, lanes: int) -> str:
        """The TVM dtype of the result for `lanes` float32 lanes."""
        return Template(self.result).substitute(_sizes(lanes))


def _sizes(lanes: int) -> dict[str, object]:
    """What templates may name; QT is the LLVM type of a quarter of the lanes, D twice the lanes."""
    quarter = lanes // 4
    return {
        "L": lanes,
        "H": lanes // 2,
        "Q": quarter,
        "QT": "i32" if quarter == 1 else f"<{quarter} x i32>",
        "D": lanes * 2,
        "PAIRS": indices(4 * i + j for i in range(quarter) for j in PAIRS_OF_QUAD),
        "EVEN": indices(range(0, 2 * lanes, 2)),
        "ODD": indices(range(1, 2 * lanes, 2)),
    }


def indices(lanes: Iterable[int]) -> str:
    """A shuffle's mask in LLVM IR."""
    return "<" + ", ".join(f"i32 {lane}" for lane in lanes) + ">"


def words_lo(words: np.ndarray) -> np.ndarray:
    """The even-indexed bf16 values of int32 pairs, as float32."""
    return float32_from_bf16((words.view(np.uint32) & 0xFFFF).astype(np.uint16))


def words_hi(words: np.ndarray) -> np.ndarray:
    """The odd-indexed bf16 values of int32 pairs, as float32."""
    return float32_from_bf16((words.view(np.uint32) >> 16).astype(np.uint16))


def mac_f32(acc: np.ndarray, a: float, b: np.ndarray) -> np.ndarray:
    """acc + a * b"""
    return acc + np.float32(a) * b


def mac_bf16(acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """acc + a.lo * b.lo + a.hi * b.hi over bf16 pairs"""
    return acc + words_lo(a) * words_lo(b) + words_hi(a) * words_hi(b)


MAC_F32 = Intrinsic(
    "sw_mac_f32",
    "float32x$L",
    """
declare <$L x float> @llvm.fmuladd.v${L}f32(<$L x float>, <$L x float>, <$L x float>)
define <$L x float> @sw_mac_f32(<$L x float> %acc, float %a, <$L x float> %b) alwaysinline {
  %s = insertelement <$L x float> poison, float %a, i32 0
  %v = shufflevector <$L x float> %s, <$L x float> poison, <$L x i32> zeroinitializer
  %r = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %v, <$L x float> %b, <$L x float> %acc)
  ret <$L x float> %r
}""",
    mac_f32,
)

BF16_LO = Intrinsic(
    "sw_bf16_lo",
    "float32x$L",
    """
define <$L x float> @sw_bf16_lo(<$L x i32> %w) alwaysinline {
  %s = shl <$L x i32> %w, splat (i32 16)
  %r = bitcast <$L x i32> %s to <$L x float>
  ret <$L x float> %r
}""",
    words_lo,
)

BF16_HI = Intrinsic(
    "sw_bf16_hi",
    "float32x$L",
    """
define <$L x float> @sw_bf16_hi(<$L x i32> %w) alwaysinline {
  %s = and <$L x i32> %w, splat (i32 -65536)
  %r = bitcast <$L x i32> %s to <$L x float>
  ret <$L x float> %r
}""",
    words_hi,
)

PACK_BF16 = Intrinsic(
    "sw_pack_bf16",
    "int32x$H",
    """
define <$H x i32> @sw_pack_bf16(<$L x float> %x) alwaysinline {
  %b = bitcast <$L x float> %x to <$L x i32>
  %h = lshr <$L x i32> %b, splat (i32 16)
  %odd = and <$L x i32> %h, splat (i32 1)
  %bias = add <$L x i32> %odd, splat (i32 32767)
  %sum = add <$L x i32> %b, %bias
  %rounded = lshr <$L x i32> %sum, splat (i32 16)
  %quiet = or <$L x i32> %h, splat (i32 64)
  %nan = fcmp uno <$L x float> %x, %x
  %r = select <$L x i1> %nan, <$L x i32> %quiet, <$L x i32> %rounded
  %t = trunc <$L x i32> %r to <$L x i16>
  %w = bitcast <$L x i16> %t to <$H x i32>
  ret <$H x i32> %w
}""",
    lambda x: bf16_from_float32(x).view(np.int32),
)

BF16_BITS = Intrinsic(
    "sw_bf16_bits",
    "uint16",
    """
define i16 @sw_bf16_bits(float %x) alwaysinline {
  %b = bitcast float %x to i32
  %h = lshr i32 %b, 16
  %odd = and i32 %h, 1
  %bias = add i32 %odd, 32767
  %sum = add i32 %b, %bias
  %rounded = lshr i32 %sum, 16
  %quiet = or i32 %h, 64
  %nan = fcmp uno float %x, %x
  %r = select i1 %nan, i32 %quiet, i32 %rounded
  %t = trunc i32 %r to i16
  ret i16 %t
}""",
    bf16_from_float32,
)

MAC_VECTOR = Intrinsic(
    "sw_mac_vector",
    "float32x$L",
    """
declare <$L x float> @llvm.fmuladd.v${L}f32(<$L x float>, <$L x float>, <$L x float>)
define <$L x float> @sw_mac_vector(<$L x float> %acc, <$L x float> %a, <$L x float> %b) alwaysinline {
  %r = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %a, <$L x float> %b, <$L x float> %acc)
  ret <$L x float> %r
}""",
    lambda acc, a, b: acc + a * b,
)


_REDUCE_INT = """
declare i32 @llvm.vector.reduce.OPERATION.v${L}i32(<$L x i32>)
define i32 @NAME(<$L x i32> %x) alwaysinline {
  %r = call i32 @llvm.vector.reduce.OPERATION.v${L}i32(<$L x i32> %x)
  ret i32 %r
}"""


def _reduce_int(name: str, operation: str, meaning: Callable[..., Any]) -> Intrinsic:
    text = _REDUCE_INT.replace("NAME", name).replace("OPERATION", operation)
    return Intrinsic(name, "int32", text, meaning)


HSUM_INT = _reduce_int("sw_hsum_int", "add", lambda x: np.sum(x, dtype=np.int32))
HMAX_INT = _reduce_int("sw_hmax_int", "smax", np.max)

ABS = Intrinsic(
    "sw_abs",
    "float32x$L",
    """
declare <$L x float> @llvm.fabs.v${L}f32(<$L x float>)
define <$L x float> @sw_abs(<$L x float> %x) alwaysinline {
  %r = call <$L x float> @llvm.fabs.v${L}f32(<$L x float> %x)
  ret <$L x float> %r
}""",
    np.abs,
)

WIDEN_BF16 = Intrinsic(
    "sw_widen_bf16",
    "float32x$L",
    """
define <$L x float> @sw_widen_bf16(<$L x i16> %x) alwaysinline {
  %w = zext <$L x i16> %x to <$L x i32>
  %s = shl <$L x i32> %w, splat (i32 16)
  %r = bitcast <$L x i32> %s to <$L x float>
  ret <$L x float> %r
}""",
    float32_from_bf16,
)

# Exponent and fraction moved to their places in a float32 are the value over 2**112, subnormal ones
# too. For finite numbers.
WIDEN_F16 = Intrinsic(
    "sw_widen_f16",
    "float32x$L",
    """
define <$L x float> @sw_widen_f16(<$L x i16> %x) alwaysinline {
  %w = zext <$L x i16> %x to <$L x i32>
  %m = and <$L x i32> %w, splat (i32 32767)
  %e = shl <$L x i32> %m, splat (i32 13)
  %f = bitcast <$L x i32> %e to <$L x float>
  %v = fmul <$L x float> %f, splat (float 0x46F0000000000000)
  %b = bitcast <$L x float> %v to <$L x i32>
  %h = and <$L x i32> %w, splat (i32 32768)
  %s = shl <$L x i32> %h, splat (i32 16)
  %o = or <$L x i32> %b, %s
  %r = bitcast <$L x i32> %o to <$L x float>
  ret <$L x float> %r
}""",
    lambda x: x.view(np.float16).astype(np.float32),
)

# For ISAs that convert half precision in one instruction.
WIDEN_F16_NATIVE = Intrinsic(
    WIDEN_F16.name,
    WIDEN_F16.result,
    """
define <$L x float> @sw_widen_f16(<$L x i16> %x) alwaysinline {
  %h = bitcast <$L x i16> %x to <$L x half>
  %r = fpext <$L x half> %h to <$L x float>
  ret <$L x float> %r
}""",
    WIDEN_F16.meaning,
)


def _prefetch(name: str, locality: int) -> Intrinsic:
    text = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define i32 @NAME(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 LOCALITY, i32 1) memory(inaccessiblemem: readwrite)
  ret i32 0
}"""
    text = text.replace("NAME", name).replace("LOCALITY", str(locality))
    return Intrinsic(name, "int32", text, lambda p: np.int32(0))


PREFETCH = _prefetch("sw_prefetch", 3)  # into all caches
PREFETCH_L2 = _prefetch("sw_prefetch_l2", 2)  # into the second level and beyond

PORTABLE: tuple[Intrinsic, ...] = (
    MAC_F32, BF16_LO, BF16_HI, PACK_BF16, BF16_BITS, PREFETCH, PREFETCH_L2,
    MAC_VECTOR, HSUM_INT, HMAX_INT, ABS, WIDEN_BF16, WIDEN_F16,
)  # fmt: skip
