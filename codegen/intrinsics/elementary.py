"""Functions of float32 vectors every ISA shares, in portable LLVM IR: exponentials, reductions,
masks.
"""

from __future__ import annotations

import numpy as np

from codegen.intrinsics.base import Intrinsic

MASK_VALUE = np.float32(-np.inf)
FAR_BELOW = np.float32(-(2.0**100))  # below every score, and finite: 0xC630000000000000 as double


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate * sigmoid(gate) * up"""
    return (gate / (1.0 + np.exp(-gate.astype(np.float64))) * up).astype(np.float32)


def gelu_tanh_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gate * sigmoid(2 * sqrt(2 / pi) * (gate + 0.044715 * gate**3)) * up"""
    wide = gate.astype(np.float64)
    inner = np.sqrt(8 / np.pi) * (wide + 0.044715 * wide**3)
    with np.errstate(over="ignore"):
        return (wide / (1.0 + np.exp(-inner)) * up).astype(np.float32)


def tanh(x: np.ndarray) -> np.ndarray:
    """tanh(x)"""
    return np.tanh(x.astype(np.float64)).astype(np.float32)


def exp2(x: np.ndarray) -> np.ndarray:
    """2**x, zero below -126, 2**126 above 126"""
    wide = np.exp2(np.minimum(x.astype(np.float64), 126))
    return np.where(x < -126, 0, wide).astype(np.float32)


def mask_from(scores: np.ndarray, num_valid: int) -> np.ndarray:
    """Lanes at `num_valid` and beyond become -inf."""
    return np.where(np.arange(scores.size) < num_valid, scores, MASK_VALUE)


def mask_below(scores: np.ndarray, num_masked: int) -> np.ndarray:
    """Lanes before `num_masked` become FAR_BELOW."""
    return np.where(np.arange(scores.size) < num_masked, FAR_BELOW, scores)


def any_above(x: np.ndarray, threshold: float) -> np.int32:
    """1 if a lane is above `threshold`, else 0"""
    return np.int32((x > threshold).any())


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

# (1 + tanh(z)) / 2 is sigmoid(2 z), so GELU's approximation is a SiLU with another sigmoid. The
# constants are -2 * sqrt(2 / pi) * log2(e) and that times 0.044715.
GELU_TANH_MUL = Intrinsic(
    "sw_gelu_tanh_mul",
    "float32x$L",
    """
define <$L x float> @sw_gelu_tanh_mul(<$L x float> %g, <$L x float> %u) alwaysinline {
  %q = fmul <$L x float> %g, %g
  %c = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %q, <$L x float> splat (float 0xBFBA5A7D00000000), <$L x float> splat (float 0xC0026AEC20000000))
  %a = fmul <$L x float> %g, %c
  %e = call <$L x float> @sw_exp2(<$L x float> %a)
  %d = fadd <$L x float> %e, splat (float 1.000000e+00)
  %s = fdiv <$L x float> %g, %d
  %r = fmul <$L x float> %s, %u
  ret <$L x float> %r
}""",
    gelu_tanh_mul,
)

# tanh(x): near zero the Taylor polynomial up to x**11, beyond that 1 - 2 / (exp(2 |x|) + 1) with the
# sign of x; under 1e-6 relative.
TANH = Intrinsic(
    "sw_tanh",
    "float32x$L",
    """
declare <$L x float> @llvm.fabs.v${L}f32(<$L x float>)
declare <$L x float> @llvm.copysign.v${L}f32(<$L x float>, <$L x float>)
define <$L x float> @sw_tanh(<$L x float> %x) alwaysinline {
  %q = fmul <$L x float> %x, %x
  %p4 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %q, <$L x float> splat (float 0xBF8226E360000000), <$L x float> splat (float 0x3F9664F480000000))
  %p3 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %q, <$L x float> %p4, <$L x float> splat (float 0xBFABA1BA20000000))
  %p2 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %q, <$L x float> %p3, <$L x float> splat (float 0x3FC1111120000000))
  %p1 = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %q, <$L x float> %p2, <$L x float> splat (float 0xBFD5555560000000))
  %xq = fmul <$L x float> %x, %q
  %near = call <$L x float> @llvm.fmuladd.v${L}f32(<$L x float> %xq, <$L x float> %p1, <$L x float> %x)
  %m = call <$L x float> @llvm.fabs.v${L}f32(<$L x float> %x)
  %a = fmul <$L x float> %m, splat (float 0x4007154760000000)
  %e = call <$L x float> @sw_exp2(<$L x float> %a)
  %d = fadd <$L x float> %e, splat (float 1.000000e+00)
  %h = fdiv <$L x float> splat (float 2.000000e+00), %d
  %t = fsub <$L x float> splat (float 1.000000e+00), %h
  %far = call <$L x float> @llvm.copysign.v${L}f32(<$L x float> %t, <$L x float> %x)
  %small = fcmp olt <$L x float> %m, splat (float 3.750000e-01)
  %r = select <$L x i1> %small, <$L x float> %near, <$L x float> %far
  ret <$L x float> %r
}""",
    tanh,
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

MASK_BELOW = Intrinsic(
    "sw_mask_below",
    "float32x$L",
    """
define <$L x float> @sw_mask_below(<$L x float> %x, i32 %n) alwaysinline {
  %s = insertelement <$L x i32> poison, i32 %n, i32 0
  %v = shufflevector <$L x i32> %s, <$L x i32> poison, <$L x i32> zeroinitializer
  %lane = call <$L x i32> @llvm.stepvector.v${L}i32()
  %ok = icmp sge <$L x i32> %lane, %v
  %r = select <$L x i1> %ok, <$L x float> %x, <$L x float> splat (float 0xC630000000000000)
  ret <$L x float> %r
}""",
    mask_below,
)

ANY_ABOVE = Intrinsic(
    "sw_any_above",
    "int32",
    """
declare i1 @llvm.vector.reduce.or.v${L}i1(<$L x i1>)
define i32 @sw_any_above(<$L x float> %x, float %t) alwaysinline {
  %s = insertelement <$L x float> poison, float %t, i32 0
  %v = shufflevector <$L x float> %s, <$L x float> poison, <$L x i32> zeroinitializer
  %above = fcmp ogt <$L x float> %x, %v
  %any = call i1 @llvm.vector.reduce.or.v${L}i1(<$L x i1> %above)
  %r = zext i1 %any to i32
  ret i32 %r
}""",
    any_above,
)

PORTABLE: tuple[Intrinsic, ...] = (
    EXP2,
    SILU_MUL,
    GELU_TANH_MUL,
    TANH,
    HMAX,
    HSUM,
    MASK_FROM,
    MASK_BELOW,
    ANY_ABOVE,
)
