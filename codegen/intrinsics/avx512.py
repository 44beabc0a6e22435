"""AVX-512 without VNNI: half precision converts in one instruction; bytes are multiplied as AVX2
does it, unsigned by signed ones with saturation at 16 bits.

Nibbles (at most 15) keep far below that. For signed bytes, |w| meets a with the sign of w, which
stays below it too: 2 x 128 x 127 < 2**15.
"""

from __future__ import annotations

from codegen.intrinsics.base import DOT_S8, DOT_U4, WIDEN_F16_NATIVE, Intrinsic

_DECLARATIONS = """
declare <32 x i16> @llvm.x86.avx512.pmaddubs.w.512(<64 x i8>, <64 x i8>)
declare <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16>, <32 x i16>)
declare <64 x i8> @llvm.abs.v64i8(<64 x i8>, i1)"""

_QUADS = """
  %pairs = call <32 x i16> @llvm.x86.avx512.pmaddubs.w.512(<64 x i8> %unsigned, <64 x i8> %signed)
  %quads = call <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16> %pairs, <32 x i16> splat (i16 1))
  %r = add <16 x i32> %acc, %quads
  ret <16 x i32> %r
}"""

DOT_U4_AVX512 = Intrinsic(
    DOT_U4.name,
    DOT_U4.result,
    f"""{_DECLARATIONS}
define <16 x i32> @sw_dot_u4(<16 x i32> %acc, i32 %a, <16 x i32> %w) alwaysinline {{
  %s = insertelement <16 x i32> poison, i32 %a, i32 0
  %v = shufflevector <16 x i32> %s, <16 x i32> poison, <16 x i32> zeroinitializer
  %signed = bitcast <16 x i32> %v to <64 x i8>
  %unsigned = bitcast <16 x i32> %w to <64 x i8>{_QUADS}""",
    DOT_U4.meaning,
)

DOT_S8_AVX512 = Intrinsic(
    DOT_S8.name,
    DOT_S8.result,
    f"""{_DECLARATIONS}
define <16 x i32> @sw_dot_s8(<16 x i32> %acc, i32 %a, <16 x i32> %w) alwaysinline {{
  %s = insertelement <16 x i32> poison, i32 %a, i32 0
  %v = shufflevector <16 x i32> %s, <16 x i32> poison, <16 x i32> zeroinitializer
  %ab = bitcast <16 x i32> %v to <64 x i8>
  %wb = bitcast <16 x i32> %w to <64 x i8>
  %unsigned = call <64 x i8> @llvm.abs.v64i8(<64 x i8> %wb, i1 false)
  %minus = sub <64 x i8> zeroinitializer, %ab
  %is_minus = icmp slt <64 x i8> %wb, zeroinitializer
  %signed = select <64 x i1> %is_minus, <64 x i8> %minus, <64 x i8> %ab{_QUADS}""",
    DOT_S8.meaning,
)

SPELLINGS: tuple[Intrinsic, ...] = (DOT_U4_AVX512, DOT_S8_AVX512, WIDEN_F16_NATIVE)
