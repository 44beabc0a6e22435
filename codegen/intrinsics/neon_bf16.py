"""NEON with BF16: a dot product of bf16 pairs and rounding conversions, each one instruction.

BFDOT rounds its sums to odd and flushes subnormals, unless FEAT_EBF16 is enabled.
"""

from __future__ import annotations

from codegen.intrinsics.base import BF16_BITS, PACK_BF16, Intrinsic, mac_bf16

MAC_BF16 = Intrinsic(
    "sw_mac_bf16",
    "float32x$L",
    """
declare <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float>, <8 x bfloat>, <8 x bfloat>)
define <4 x float> @sw_mac_bf16(<4 x float> %acc, i32 %a, <4 x i32> %b) alwaysinline {
  %s = insertelement <4 x i32> poison, i32 %a, i32 0
  %v = shufflevector <4 x i32> %s, <4 x i32> poison, <4 x i32> zeroinitializer
  %ah = bitcast <4 x i32> %v to <8 x bfloat>
  %bh = bitcast <4 x i32> %b to <8 x bfloat>
  %r = call <4 x float> @llvm.aarch64.neon.bfdot.v4f32.v8bf16(<4 x float> %acc, <8 x bfloat> %bh, <8 x bfloat> %ah)
  ret <4 x float> %r
}""",
    mac_bf16,
)

PACK = Intrinsic(
    PACK_BF16.name,
    PACK_BF16.result,
    """
define <2 x i32> @sw_pack_bf16(<4 x float> %x) alwaysinline {
  %h = fptrunc <4 x float> %x to <4 x bfloat>
  %w = bitcast <4 x bfloat> %h to <2 x i32>
  ret <2 x i32> %w
}""",
    PACK_BF16.meaning,
)

BITS = Intrinsic(
    BF16_BITS.name,
    BF16_BITS.result,
    """
define i16 @sw_bf16_bits(float %x) alwaysinline {
  %h = fptrunc float %x to bfloat
  %b = bitcast bfloat %h to i16
  ret i16 %b
}""",
    BF16_BITS.meaning,
)

SPELLINGS: tuple[Intrinsic, ...] = (MAC_BF16, PACK, BITS)
