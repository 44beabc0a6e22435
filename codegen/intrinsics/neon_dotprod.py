"""NEON with dot products: SDOT multiplies four signed bytes by four and accumulates.

Nibbles (at most 15) are the same number signed and unsigned.
"""

from __future__ import annotations

from codegen.intrinsics.base import Intrinsic
from codegen.intrinsics.integers import DOT_S8, DOT_U4

_SPELLING = """
declare <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
define <4 x i32> @NAME(<4 x i32> %acc, i32 %a, <4 x i32> %w) alwaysinline {
  %s = insertelement <4 x i32> poison, i32 %a, i32 0
  %v = shufflevector <4 x i32> %s, <4 x i32> poison, <4 x i32> zeroinitializer
  %ab = bitcast <4 x i32> %v to <16 x i8>
  %wb = bitcast <4 x i32> %w to <16 x i8>
  %r = call <4 x i32> @llvm.aarch64.neon.sdot.v4i32.v16i8(<4 x i32> %acc, <16 x i8> %wb, <16 x i8> %ab)
  ret <4 x i32> %r
}"""

SPELLINGS: tuple[Intrinsic, ...] = tuple(
    Intrinsic(dot.name, dot.result, _SPELLING.replace("NAME", dot.name), dot.meaning)
    for dot in (DOT_U4, DOT_S8)
)
