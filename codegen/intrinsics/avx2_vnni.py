"""AVX2 with AVX-VNNI: VPDPBUSD multiplies four unsigned by four signed bytes and accumulates."""

from __future__ import annotations

from codegen.intrinsics.base import Intrinsic
from codegen.intrinsics.integers import DOT_U4, DOT_U8

_SPELLING = """
declare <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32>, <32 x i8>, <32 x i8>)
define <8 x i32> @NAME(<8 x i32> %acc, i32 %a, <8 x i32> %w) alwaysinline {
  %s = insertelement <8 x i32> poison, i32 %a, i32 0
  %v = shufflevector <8 x i32> %s, <8 x i32> poison, <8 x i32> zeroinitializer
  %ab = bitcast <8 x i32> %v to <32 x i8>
  %wb = bitcast <8 x i32> %w to <32 x i8>
  %r = call <8 x i32> @llvm.x86.avx512.vpdpbusd.256(<8 x i32> %acc, <32 x i8> %wb, <32 x i8> %ab)
  ret <8 x i32> %r
}"""

SPELLINGS: tuple[Intrinsic, ...] = tuple(
    Intrinsic(dot.name, dot.result, _SPELLING.replace("NAME", dot.name), dot.meaning)
    for dot in (DOT_U4, DOT_U8)
)
