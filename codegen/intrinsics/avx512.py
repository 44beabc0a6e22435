"""AVX-512 without VNNI: half precision converts in one instruction; integers are multiplied in
pairs, as AVX2 does it.
"""

from __future__ import annotations

from codegen.intrinsics.base import WIDEN_F16_NATIVE, Intrinsic
from codegen.intrinsics.integers import DOT_PAIRS, DOT_U4, add_short, short_u4

_BYTES = "declare <32 x i16> @llvm.x86.avx512.pmaddubs.w.512(<64 x i8>, <64 x i8>)"
_PAIRS = "declare <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16>, <32 x i16>)"

# `a` in all lanes.
_SPLAT = """
  %s = insertelement <16 x i32> poison, i32 %a, i32 0
  %v = shufflevector <16 x i32> %s, <16 x i32> poison, <16 x i32> zeroinitializer"""

_PRODUCTS = f"""{_SPLAT}
  %ab = bitcast <16 x i32> %v to <64 x i8>
  %wb = bitcast <16 x i32> %w to <64 x i8>
  %pairs = call <32 x i16> @llvm.x86.avx512.pmaddubs.w.512(<64 x i8> %wb, <64 x i8> %ab)"""

DOT_U4_AVX512 = Intrinsic(
    DOT_U4.name,
    DOT_U4.result,
    f"""
{_BYTES}
{_PAIRS}
define <16 x i32> @sw_dot_u4(<16 x i32> %acc, i32 %a, <16 x i32> %w) alwaysinline {{{_PRODUCTS}
  %quads = call <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16> %pairs, <32 x i16> splat (i16 1))
  %r = add <16 x i32> %acc, %quads
  ret <16 x i32> %r
}}""",
    DOT_U4.meaning,
)

SHORT_U4 = Intrinsic(
    "sw_short_u4",
    "int32x$L",
    f"""
{_BYTES}
define <16 x i32> @sw_short_u4(<16 x i32> %sums, i32 %a, <16 x i32> %w) alwaysinline {{{_PRODUCTS}
  %before = bitcast <16 x i32> %sums to <32 x i16>
  %after = add <32 x i16> %before, %pairs
  %r = bitcast <32 x i16> %after to <16 x i32>
  ret <16 x i32> %r
}}""",
    short_u4,
)

ADD_SHORT = Intrinsic(
    "sw_add_short",
    "int32x$L",
    f"""
{_PAIRS}
define <16 x i32> @sw_add_short(<16 x i32> %acc, <16 x i32> %sums) alwaysinline {{
  %s = bitcast <16 x i32> %sums to <32 x i16>
  %q = call <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16> %s, <32 x i16> splat (i16 1))
  %r = add <16 x i32> %acc, %q
  ret <16 x i32> %r
}}""",
    add_short,
)

DOT_PAIRS_AVX512 = Intrinsic(
    DOT_PAIRS.name,
    DOT_PAIRS.result,
    f"""
{_PAIRS}
define <16 x i32> @sw_dot_pairs(<16 x i32> %acc, i32 %a, <16 x i32> %w) alwaysinline {{{_SPLAT}
  %ah = bitcast <16 x i32> %v to <32 x i16>
  %wh = bitcast <16 x i32> %w to <32 x i16>
  %p = call <16 x i32> @llvm.x86.avx512.pmaddw.d.512(<32 x i16> %ah, <32 x i16> %wh)
  %r = add <16 x i32> %acc, %p
  ret <16 x i32> %r
}}""",
    DOT_PAIRS.meaning,
)

SPELLINGS: tuple[Intrinsic, ...] = (
    DOT_U4_AVX512,
    SHORT_U4,
    ADD_SHORT,
    DOT_PAIRS_AVX512,
    WIDEN_F16_NATIVE,
)
