"""Small integers as bf16 pairs, exactly: what multiplies 8- and 4-bit weights by float activations.

Every ISA has these in portable LLVM IR; those that multiply bf16 pairs have better spellings.
"""

from __future__ import annotations

import numpy as np

from codegen.intrinsics.base import Intrinsic
from codegen.layout.arrays import bf16_from_float32


def pairs_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """int32 lanes of two bf16 values each, from numbers that bf16 holds"""
    both = np.stack((low, high), axis=-1).astype(np.float32)
    return bf16_from_float32(both).view(np.int32)[..., 0]


def bytes_of(words: np.ndarray) -> np.ndarray:
    """pairs of the two signed bytes of int16 lanes"""
    both = words[:, None].view(np.int8)
    return pairs_of(both[:, 0], both[:, 1])


def low_bits(words: np.ndarray, num_bits: int) -> np.ndarray:
    """pairs of the low bits of the halves of int32 lanes, minus half of their range"""
    both = words[:, None].view(np.uint16).astype(np.int32) & ((1 << num_bits) - 1)
    both -= 1 << (num_bits - 1)
    return pairs_of(both[:, 0], both[:, 1])


PAIR_BF16 = Intrinsic(
    "sw_pair_bf16",
    "int32x$L",
    """
define <$L x i32> @sw_pair_bf16(<$L x float> %low, <$L x float> %high) alwaysinline {
  %lb = bitcast <$L x float> %low to <$L x i32>
  %hb = bitcast <$L x float> %high to <$L x i32>
  %l = lshr <$L x i32> %lb, splat (i32 16)
  %h = and <$L x i32> %hb, splat (i32 -65536)
  %r = or <$L x i32> %l, %h
  ret <$L x i32> %r
}""",
    pairs_of,
)

S8_BF16 = Intrinsic(
    "sw_s8_bf16",
    "int32x$L",
    """
define <$L x i32> @sw_s8_bf16(<$L x i16> %w) alwaysinline {
  %l8 = shl <$L x i16> %w, splat (i16 8)
  %l16 = ashr <$L x i16> %l8, splat (i16 8)
  %h16 = ashr <$L x i16> %w, splat (i16 8)
  %l = sitofp <$L x i16> %l16 to <$L x float>
  %h = sitofp <$L x i16> %h16 to <$L x float>
  %lb = bitcast <$L x float> %l to <$L x i32>
  %hb = bitcast <$L x float> %h to <$L x i32>
  %lo = lshr <$L x i32> %lb, splat (i32 16)
  %r = or <$L x i32> %lo, %hb
  ret <$L x i32> %r
}""",
    bytes_of,
)


def _low_bits(name: str, num_bits: int) -> Intrinsic:
    text = """
define <$L x i32> @NAME(<$L x i32> %w) alwaysinline {
  %l = and <$L x i32> %w, splat (i32 MASK)
  %s = lshr <$L x i32> %w, splat (i32 16)
  %h = and <$L x i32> %s, splat (i32 MASK)
  %lz = sub <$L x i32> %l, splat (i32 ZERO)
  %hz = sub <$L x i32> %h, splat (i32 ZERO)
  %lf = sitofp <$L x i32> %lz to <$L x float>
  %hf = sitofp <$L x i32> %hz to <$L x float>
  %lb = bitcast <$L x float> %lf to <$L x i32>
  %hb = bitcast <$L x float> %hf to <$L x i32>
  %lo = lshr <$L x i32> %lb, splat (i32 16)
  %r = or <$L x i32> %lo, %hb
  ret <$L x i32> %r
}"""
    mask, zero = (1 << num_bits) - 1, 1 << (num_bits - 1)
    text = text.replace("NAME", name).replace("MASK", str(mask)).replace("ZERO", str(zero))
    return Intrinsic(name, "int32x$L", text, lambda w: low_bits(w, num_bits))


# The higher bits of each half are ignored.
FOUR_BITS_BF16 = _low_bits("sw_four_bits_bf16", 4)
FIVE_BITS_BF16 = _low_bits("sw_five_bits_bf16", 5)

PORTABLE: tuple[Intrinsic, ...] = (PAIR_BF16, S8_BF16, FOUR_BITS_BF16, FIVE_BITS_BF16)
