"""AVX2: half precision converts in one instruction; integers are multiplied in pairs.

VPMADDUBSW multiplies unsigned by signed bytes and adds two products, saturated at 16 bits: nibbles
(at most 15) leave room for eight such sums. int8 weights do not: they become pairs of 16 bits, as
activations are, which VPMADDWD multiplies without loss.
"""

from __future__ import annotations

from codegen.intrinsics.base import WIDEN_F16_NATIVE, Intrinsic
from codegen.intrinsics.integers import DOT_PAIRS, DOT_U4, add_short, short_u4

_BYTES = "declare <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8>, <32 x i8>)"
_PAIRS = "declare <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16>, <16 x i16>)"

# `a` in all lanes.
_SPLAT = """
  %s = insertelement <8 x i32> poison, i32 %a, i32 0
  %v = shufflevector <8 x i32> %s, <8 x i32> poison, <8 x i32> zeroinitializer"""

_PRODUCTS = f"""{_SPLAT}
  %ab = bitcast <8 x i32> %v to <32 x i8>
  %wb = bitcast <8 x i32> %w to <32 x i8>
  %pairs = call <16 x i16> @llvm.x86.avx2.pmadd.ub.sw(<32 x i8> %wb, <32 x i8> %ab)"""

DOT_U4_AVX2 = Intrinsic(
    DOT_U4.name,
    DOT_U4.result,
    f"""
{_BYTES}
{_PAIRS}
define <8 x i32> @sw_dot_u4(<8 x i32> %acc, i32 %a, <8 x i32> %w) alwaysinline {{{_PRODUCTS}
  %quads = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %pairs, <16 x i16> splat (i16 1))
  %r = add <8 x i32> %acc, %quads
  ret <8 x i32> %r
}}""",
    DOT_U4.meaning,
)

SHORT_U4 = Intrinsic(
    "sw_short_u4",
    "int32x$L",
    f"""
{_BYTES}
define <8 x i32> @sw_short_u4(<8 x i32> %sums, i32 %a, <8 x i32> %w) alwaysinline {{{_PRODUCTS}
  %before = bitcast <8 x i32> %sums to <16 x i16>
  %after = add <16 x i16> %before, %pairs
  %r = bitcast <16 x i16> %after to <8 x i32>
  ret <8 x i32> %r
}}""",
    short_u4,
)

ADD_SHORT = Intrinsic(
    "sw_add_short",
    "int32x$L",
    f"""
{_PAIRS}
define <8 x i32> @sw_add_short(<8 x i32> %acc, <8 x i32> %sums) alwaysinline {{
  %s = bitcast <8 x i32> %sums to <16 x i16>
  %q = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %s, <16 x i16> splat (i16 1))
  %r = add <8 x i32> %acc, %q
  ret <8 x i32> %r
}}""",
    add_short,
)

DOT_PAIRS_AVX2 = Intrinsic(
    DOT_PAIRS.name,
    DOT_PAIRS.result,
    f"""
{_PAIRS}
define <8 x i32> @sw_dot_pairs(<8 x i32> %acc, i32 %a, <8 x i32> %w) alwaysinline {{{_SPLAT}
  %ah = bitcast <8 x i32> %v to <16 x i16>
  %wh = bitcast <8 x i32> %w to <16 x i16>
  %p = call <8 x i32> @llvm.x86.avx2.pmadd.wd(<16 x i16> %ah, <16 x i16> %wh)
  %r = add <8 x i32> %acc, %p
  ret <8 x i32> %r
}}""",
    DOT_PAIRS.meaning,
)

SPELLINGS: tuple[Intrinsic, ...] = (
    DOT_U4_AVX2,
    SHORT_U4,
    ADD_SHORT,
    DOT_PAIRS_AVX2,
    WIDEN_F16_NATIVE,
)
