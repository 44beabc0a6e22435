"""NEON (ARMv8.0): half precision converts in one instruction; dot products of bytes are widening
multiplications and pairwise additions.

Two products of bytes within [-127, 127] or [-128, 15] add up within 16 bits, so the first pairwise
add (ADDP) needs no wider lanes; the second (SADALP) widens and accumulates.
"""

from __future__ import annotations

from codegen.intrinsics.base import WIDEN_F16_NATIVE, Intrinsic
from codegen.intrinsics.integers import DOT_S8, DOT_U4

_SPELLING = """
declare <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8>, <8 x i8>)
declare <8 x i16> @llvm.aarch64.neon.addp.v8i16(<8 x i16>, <8 x i16>)
declare <4 x i32> @llvm.aarch64.neon.saddlp.v4i32.v8i16(<8 x i16>)
define <4 x i32> @NAME(<4 x i32> %acc, i32 %a, <4 x i32> %w) alwaysinline {
  %s = insertelement <2 x i32> poison, i32 %a, i32 0
  %v = shufflevector <2 x i32> %s, <2 x i32> poison, <2 x i32> zeroinitializer
  %ab = bitcast <2 x i32> %v to <8 x i8>
  %w0 = shufflevector <4 x i32> %w, <4 x i32> poison, <2 x i32> <i32 0, i32 1>
  %w1 = shufflevector <4 x i32> %w, <4 x i32> poison, <2 x i32> <i32 2, i32 3>
  %b0 = bitcast <2 x i32> %w0 to <8 x i8>
  %b1 = bitcast <2 x i32> %w1 to <8 x i8>
  %p0 = call <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8> %ab, <8 x i8> %b0)
  %p1 = call <8 x i16> @llvm.aarch64.neon.smull.v8i16(<8 x i8> %ab, <8 x i8> %b1)
  %pairs = call <8 x i16> @llvm.aarch64.neon.addp.v8i16(<8 x i16> %p0, <8 x i16> %p1)
  %quads = call <4 x i32> @llvm.aarch64.neon.saddlp.v4i32.v8i16(<8 x i16> %pairs)
  %r = add <4 x i32> %acc, %quads
  ret <4 x i32> %r
}"""

_DOTS = (
    Intrinsic(dot.name, dot.result, _SPELLING.replace("NAME", dot.name), dot.meaning)
    for dot in (DOT_U4, DOT_S8)
)

SPELLINGS: tuple[Intrinsic, ...] = (*_DOTS, WIDEN_F16_NATIVE)
