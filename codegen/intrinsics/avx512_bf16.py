"""AVX-512 with BF16: a dot product of bf16 pairs and a rounding conversion, each one
instruction.
"""

from __future__ import annotations

import numpy as np

from codegen.intrinsics.base import PACK_BF16, Intrinsic, indices, mac_bf16
from codegen.intrinsics.widening import FIVE_BITS_BF16, FOUR_BITS_BF16, S8_BF16
from codegen.layout.arrays import bf16_from_float32

# VDPBF16PS rounds to nearest even and flushes subnormals; it adds the odd pair's product first,
# then the even one's.
MAC_BF16 = Intrinsic(
    "sw_mac_bf16",
    "float32x$L",
    """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define <16 x float> @sw_mac_bf16(<16 x float> %acc, i32 %a, <16 x i32> %b) alwaysinline {
  %s = insertelement <16 x i32> poison, i32 %a, i32 0
  %v = shufflevector <16 x i32> %s, <16 x i32> poison, <16 x i32> zeroinitializer
  %ah = bitcast <16 x i32> %v to <32 x bfloat>
  %bh = bitcast <16 x i32> %b to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %acc, <32 x bfloat> %bh, <32 x bfloat> %ah)
  ret <16 x float> %r
}""",
    mac_bf16,
)

PACK = Intrinsic(
    PACK_BF16.name,
    PACK_BF16.result,
    """
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)
define <8 x i32> @sw_pack_bf16(<16 x float> %x) alwaysinline {
  %h = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %x)
  %w = bitcast <16 x bfloat> %h to <8 x i32>
  ret <8 x i32> %w
}""",
    PACK_BF16.meaning,
)

# The halves of the 32 bytes widen each to 16 float32, of which one permutation takes the upper 16
# bits: bytes have no others. That is faster than a conversion that rounds.
BYTES = Intrinsic(
    S8_BF16.name,
    S8_BF16.result,
    f"""
define <16 x i32> @sw_s8_bf16(<16 x i16> %w) alwaysinline {{
  %b = bitcast <16 x i16> %w to <32 x i8>
  %l8 = shufflevector <32 x i8> %b, <32 x i8> poison, <16 x i32> {indices(range(16))}
  %h8 = shufflevector <32 x i8> %b, <32 x i8> poison, <16 x i32> {indices(range(16, 32))}
  %lf = sitofp <16 x i8> %l8 to <16 x float>
  %hf = sitofp <16 x i8> %h8 to <16 x float>
  %l = bitcast <16 x float> %lf to <32 x i16>
  %h = bitcast <16 x float> %hf to <32 x i16>
  %p = shufflevector <32 x i16> %l, <32 x i16> %h, <32 x i32> {indices(range(1, 64, 2))}
  %r = bitcast <32 x i16> %p to <16 x i32>
  ret <16 x i32> %r
}}""",
    S8_BF16.meaning,
)


def _table(intrinsic: Intrinsic, num_bits: int) -> Intrinsic:
    """VPERMW looks 32 values up by the low five bits of each; four bits have their table twice."""
    numbers = np.arange(32) % (1 << num_bits) - (1 << (num_bits - 1))
    bits = bf16_from_float32(numbers.astype(np.float32))
    entries = ", ".join(f"i16 {bit}" for bit in bits.view(np.int16))
    text = f"""
declare <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16>, <32 x i16>)
define <16 x i32> @{intrinsic.name}(<16 x i32> %w) alwaysinline {{
  %i = bitcast <16 x i32> %w to <32 x i16>
  %p = call <32 x i16> @llvm.x86.avx512.permvar.hi.512(<32 x i16> <{entries}>, <32 x i16> %i)
  %r = bitcast <32 x i16> %p to <16 x i32>
  ret <16 x i32> %r
}}"""
    return Intrinsic(intrinsic.name, intrinsic.result, text, intrinsic.meaning)


SPELLINGS: tuple[Intrinsic, ...] = (
    *(MAC_BF16, PACK, BYTES),
    *(_table(FOUR_BITS_BF16, 4), _table(FIVE_BITS_BF16, 5)),
)
