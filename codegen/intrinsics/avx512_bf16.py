"""AVX-512 with BF16: a dot product of bf16 pairs and a rounding conversion, each one
instruction.
"""

from __future__ import annotations

from codegen.intrinsics.base import PACK_BF16, Intrinsic, mac_bf16

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

SPELLINGS: tuple[Intrinsic, ...] = (MAC_BF16, PACK)
