"""AVX2: half precision converts in one instruction; dot products of bytes are a multiplication of
unsigned by signed ones, a sum of pairs and an addition.

VPMADDUBSW adds two products and saturates at 16 bits. Nibbles (at most 15) keep far below that.
For signed bytes, |w| meets a with the sign of w, which stays below it too: 2 x 127 x 127 < 2**15.
The bytes of a must not be -128, whose sign cannot be changed.
"""

from __future__ import annotations

from codegen.intrinsics.base import DOT_S8, DOT_U4, WIDEN_F16_NATIVE, Intrinsic

_DECLARATIONS = """
declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)
declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)
declare <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8>, <32 x i8>)
declare <32 x i8> @llvm.abs.v32i8(<32 x i8>, i1)"""

DOT_U4_AVX2 = Intrinsic(
    DOT_U4.name,
    DOT_U4.result,
    f"""{_DECLARATIONS}
define <8 x i32> @sw_dot_u4(<8 x i32> %acc, i32 %a, <8 x i32> %w) alwaysinline {{
  %s = insertelement <8 x i32> poison, i32 %a, i32 0
  %v = shufflevector <8 x i32> %s, <8 x i32> poison, <8 x i32> zeroinitializer
  %ab = bitcast <8 x i32> %v to <32 x i8>
  %wb = bitcast <8 x i32> %w to <32 x i8>
  %pairs = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %wb, <32 x i8> %ab)
  %quads = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %pairs, <16 x i16> splat (i16 1))
  %r = add <8 x i32> %acc, %quads
  ret <8 x i32> %r
}}""",
    DOT_U4.meaning,
)

DOT_S8_AVX2 = Intrinsic(
    DOT_S8.name,
    DOT_S8.result,
    f"""{_DECLARATIONS}
define <8 x i32> @sw_dot_s8(<8 x i32> %acc, i32 %a, <8 x i32> %w) alwaysinline {{
  %s = insertelement <8 x i32> poison, i32 %a, i32 0
  %v = shufflevector <8 x i32> %s, <8 x i32> poison, <8 x i32> zeroinitializer
  %ab = bitcast <8 x i32> %v to <32 x i8>
  %wb = bitcast <8 x i32> %w to <32 x i8>
  %magnitude = call <32 x i8> @llvm.abs.v32i8(<32 x i8> %wb, i1 false)
  %signed = call <32 x i8> @llvm.x86.avx2.psign.b(<32 x i8> %ab, <32 x i8> %wb)
  %pairs = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %magnitude, <32 x i8> %signed)
  %quads = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %pairs, <16 x i16> splat (i16 1))
  %r = add <8 x i32> %acc, %quads
  ret <8 x i32> %r
}}""",
    DOT_S8.meaning,
)

SPELLINGS: tuple[Intrinsic, ...] = (DOT_U4_AVX2, DOT_S8_AVX2, WIDEN_F16_NATIVE)
