"""Intrinsics every ISA shares, spelled in portable LLVM IR for vectors of any number of lanes.

An intrinsic is its meaning (a NumPy function, the truth of its test) and its spelling (LLVM IR text
that TVM imports and LLVM inlines). `$L` is the number of float32 lanes, `$H` half of it. bf16 pairs
travel as int32 lanes, the value with the even index in the low half. An ISA file replaces
spellings, never meanings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from string import Template
from typing import Any

import numpy as np

from codegen.arrays import bf16_from_float32, float32_from_bf16

MASK_VALUE = np.float32(-np.inf)


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
        return Template(self.spelling).substitute(L=lanes, H=lanes // 2)

    def dtype(self, lanes: int) -> str:
        """The TVM dtype of the result for `lanes` float32 lanes."""
        return Template(self.result).substitute(L=lanes, H=lanes // 2)


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


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate * sigmoid(gate) * up"""
    return (gate / (1.0 + np.exp(-gate.astype(np.float64))) * up).astype(np.float32)


def exp2(x: np.ndarray) -> np.ndarray:
    """2**x, zero below -126, 2**126 above 126"""
    wide = np.exp2(np.minimum(x.astype(np.float64), 126))
    return np.where(x < -126, 0, wide).astype(np.float32)


def mask_from(scores: np.ndarray, num_valid: int) -> np.ndarray:
    """Lanes at `num_valid` and beyond become -inf."""
    return np.where(np.arange(scores.size) < num_valid, scores, MASK_VALUE)


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

# 2**x: n = round(x) through the 1.5 * 2**23 trick, then the degree-6 Taylor polynomial of 2**f on
# [-0.5, 0.5] (under 2e-7 relative) and n added to the exponent. Below -126 the result is zero,
# above 126 it is 2**126; NaN stays NaN.
EXP2 = Intrinsic(
    "sw_exp2",
    "float32x$L",
    """
define <$L x float> @sw_exp2(<$L x float> %x0) alwaysinline {
  %under = fcmp olt <$L x float> %x0, splat (float -1.260000e+02)
  %x1 = select <$L x i1> %under, <$L x float> splat (float -1.260000e+02), <$L x float> %x0
  %over = fcmp ogt <$L x float> %x1, splat (float 1.260000e+02)
  %x = select <$L x i1> %over, <$L x float> splat (float 1.260000e+02), <$L x float> %x1
  %t = fadd <$L x float> %x, splat (float 0x4168000000000000)
  %n = fsub <$L x float> %t, splat (float 0x4168000000000000)
  %f = fsub <$L x float> %x, %n
  %p5 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %f, <$L x float> splat (float 0x3F24309120000000), <$L x float> splat (float 0x3F55D87FE0000000))
  %p4 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %f, <$L x float> %p5, <$L x float> splat (float 0x3F83B2AB60000000))
  %p3 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %f, <$L x float> %p4, <$L x float> splat (float 0x3FAC6B08E0000000))
  %p2 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %f, <$L x float> %p3, <$L x float> splat (float 0x3FCEBFBE00000000))
  %p1 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %f, <$L x float> %p2, <$L x float> splat (float 0x3FE62E4300000000))
  %p0 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %f, <$L x float> %p1, <$L x float> splat (float 1.000000e+00))
  %ti = bitcast <$L x float> %t to <$L x i32>
  %e = shl <$L x i32> %ti, splat (i32 23)
  %pi = bitcast <$L x float> %p0 to <$L x i32>
  %ri = add <$L x i32> %pi, %e
  %rf = bitcast <$L x i32> %ri to <$L x float>
  %r = select <$L x i1> %under, <$L x float> zeroinitializer, <$L x float> %rf
  ret <$L x float> %r
}""",
    exp2,
)

SILU_MUL = Intrinsic(
    "sw_silu_mul",
    "float32x$L",
    """
define <$L x float> @sw_silu_mul(<$L x float> %g, <$L x float> %u) alwaysinline {
  %a = fmul <$L x float> %g, splat (float 0xBFF7154760000000)
  %e = call <$L x float> @sw_exp2(<$L x float> %a)
  %d = fadd <$L x float> %e, splat (float 1.000000e+00)
  %s = fdiv <$L x float> %g, %d
  %r = fmul <$L x float> %s, %u
  ret <$L x float> %r
}""",
    silu_mul,
)

# Horizontal reductions run once per row, never in a hot loop; `reassoc` lets LLVM build the tree.
HMAX = Intrinsic(
    "sw_hmax",
    "float32",
    """
declare float @llvm.vector.reduce.fmax.v${L}f32(<$L x float>)
define float @sw_hmax(<$L x float> %x) alwaysinline {
  %r = call nnan float @llvm.vector.reduce.fmax.v${L}f32(<$L x float> %x)
  ret float %r
}""",
    lambda x: np.max(x),
)

HSUM = Intrinsic(
    "sw_hsum",
    "float32",
    """
declare float @llvm.vector.reduce.fadd.v${L}f32(float, <$L x float>)
define float @sw_hsum(<$L x float> %x) alwaysinline {
  %r = call reassoc float @llvm.vector.reduce.fadd.v${L}f32(float -0.000000e+00, <$L x float> %x)
  ret float %r
}""",
    lambda x: np.sum(x, dtype=np.float32),
)

MASK_FROM = Intrinsic(
    "sw_mask_from",
    "float32x$L",
    """
define <$L x float> @sw_mask_from(<$L x float> %x, i32 %n) alwaysinline {
  %s = insertelement <$L x i32> poison, i32 %n, i32 0
  %v = shufflevector <$L x i32> %s, <$L x i32> poison, <$L x i32> zeroinitializer
  %lane = call <$L x i32> @llvm.stepvector.v${L}i32()
  %ok = icmp slt <$L x i32> %lane, %v
  %r = select <$L x i1> %ok, <$L x float> %x, <$L x float> splat (float 0xFFF0000000000000)
  ret <$L x float> %r
}
declare <$L x i32> @llvm.stepvector.v${L}i32()""",
    mask_from,
)

PREFETCH = Intrinsic(
    "sw_prefetch",
    "int32",
    """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
define i32 @sw_prefetch(ptr %p) alwaysinline {
  call void @llvm.prefetch.p0(ptr %p, i32 0, i32 3, i32 1) memory(inaccessiblemem: readwrite)
  ret i32 0
}""",
    lambda p: np.int32(0),
)

PORTABLE: tuple[Intrinsic, ...] = (
    MAC_F32, BF16_LO, BF16_HI, PACK_BF16, BF16_BITS, EXP2, SILU_MUL, HMAX, HSUM, MASK_FROM, PREFETCH,
)  # fmt: skip
