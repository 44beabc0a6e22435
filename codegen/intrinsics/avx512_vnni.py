"""AVX-512 with VNNI: VPDPBUSD multiplies four unsigned by four signed bytes and accumulates."""

from __future__ import annotations

from codegen.intrinsics.base import Intrinsic
from codegen.intrinsics.integers import DOT_U4, DOT_U8

_SPELLING = """
declare <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32>, <64 x i8>, <64 x i8>)
define <16 x i32> @NAME(<16 x i32> %acc, i32 %a, <16 x i32> %w) alwaysinline {
  %s = insertelement <16 x i32> poison, i32 %a, i32 0
  %v = shufflevector <16 x i32> %s, <16 x i32> poison, <16 x i32> zeroinitializer
  %ab = bitcast <16 x i32> %v to <64 x i8>
  %wb = bitcast <16 x i32> %w to <64 x i8>
  %r = call <16 x i32> @llvm.x86.avx512.vpdpbusd.512(<16 x i32> %acc, <64 x i8> %wb, <64 x i8> %ab)
  ret <16 x i32> %r
}"""

SPELLINGS: tuple[Intrinsic, ...] = tuple(
    Intrinsic(dot.name, dot.result, _SPELLING.replace("NAME", dot.name), dot.meaning)
    for dot in (DOT_U4, DOT_U8)
)
