"""NEON with I8MM: USDOT multiplies four unsigned bytes by four signed ones and accumulates.

I8MM's matrix instructions (USMMLA: 2 x 8 by 8 x 2 bytes) do twice the work of a dot product. They
want pairs of rows of A and pairs of columns of W side by side and leave blocks of 2 x 2 sums, which
is another register tile than the one all other rows share.
"""

from __future__ import annotations

from codegen.intrinsics.base import Intrinsic
from codegen.intrinsics.integers import DOT_U8

DOT_U8_I8MM = Intrinsic(
    DOT_U8.name,
    DOT_U8.result,
    """
declare <4 x i32> @llvm.aarch64.neon.usdot.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
define <4 x i32> @sw_dot_u8(<4 x i32> %acc, i32 %a, <4 x i32> %w) alwaysinline {
  %s = insertelement <4 x i32> poison, i32 %a, i32 0
  %v = shufflevector <4 x i32> %s, <4 x i32> poison, <4 x i32> zeroinitializer
  %ab = bitcast <4 x i32> %v to <16 x i8>
  %wb = bitcast <4 x i32> %w to <16 x i8>
  %r = call <4 x i32> @llvm.aarch64.neon.usdot.v4i32.v16i8(<4 x i32> %acc, <16 x i8> %wb, <16 x i8> %ab)
  ret <4 x i32> %r
}""",
    DOT_U8.meaning,
)

SPELLINGS: tuple[Intrinsic, ...] = (DOT_U8_I8MM,)
