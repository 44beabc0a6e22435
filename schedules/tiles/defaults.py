"""The tiles of a GEMM with nothing measured on the machine at hand: by ISA, format and phase.

Chosen with GEMM programs of Llama-3.2-1B's shapes on two cores of Zen 4, and kept to what holds for
any core: sums fit the registers, K blocks fit L2, few rows read a panel from end to end. Knows
nothing of plans.
"""

from __future__ import annotations

from dataclasses import replace

from codegen.spec import GemmTile, Phase, TileRanges, WeightFormat
from platforms.isa import IsaRow

MANY_ROWS = 1 << 16  # the last range of a plan has no end in truth
# 6 rows x 4 vectors fill 24 of 32 vector registers, 6 x 2 fill 12 of 16. Weights that are unpacked
# in registers need more than that leaves: their loops would spill.
MOST_ROWS, FEW_ROWS, FEWEST_ROWS = 6, 5, 4
K_BLOCK = 2048  # of a panel of 64 columns: 256 KiB in bf16, and twice that as float32
# From 7 to some dozens of rows multiplying takes as long as reading, and neither waits for the
# other if tiles fetch the next K block while they multiply this one; two must fit L2. Up to 8 rows
# are one tall tile of half a panel. The second of two tiles that share the work must not be short.
TALL_ROWS, SHARED_ROWS = 8, 11
PAIR_ROWS, PAIR_K_BLOCK = 4, 1024
# Rows from which on it pays to widen a K block of weights once for all of them. Where bf16 or int8
# are merely split in halves (AVX2), that pays sooner.
WIDENED_ROWS, SOME_ROWS, INT8_ROWS = 128, 64, 24
# One row in 16 registers: the sums of a whole panel of eight vectors do not wait for each other.
_ROW_OF_16 = (1, GemmTile(1, K_BLOCK, k_unroll=4))


def default_tiles(isa: IsaRow, phase: Phase, weights: WeightFormat) -> TileRanges:
    """The ranges of rows and their tiles for a matrix of that format."""
    if weights.is_quantized and not weights.has_int8_activations:
        return _widening(isa, phase, weights)
    if weights.group or (weights.dtype == "int4" and isa.has_short_sums):
        return _grouped(weights) if _has_32(isa) else _grouped_of_16()
    return _plain(isa, phase, weights) if _has_32(isa) else _plain_of_16(isa, weights)


def _has_32(isa: IsaRow) -> bool:
    return isa.num_vector_registers >= 32


def _plain(isa: IsaRow, phase: Phase, weights: WeightFormat) -> TileRanges:
    """One set of sums in 32 registers, weights that are multiplied as they are or nearly so."""
    is_widened = weights.dtype == "bfloat16" and not isa.has_bf16_dot
    rows = FEW_ROWS if is_widened else MOST_ROWS
    if phase is Phase.PREFILL:
        return ((MANY_ROWS, GemmTile(rows, K_BLOCK, k_unroll=2)),)
    whole = GemmTile(rows, K_BLOCK, k_unroll=4)
    tall = GemmTile(TALL_ROWS, PAIR_K_BLOCK, k_unroll=2, nv=2, block_prefetch=1)
    alone = GemmTile(rows, PAIR_K_BLOCK, k_unroll=2, block_prefetch=1)
    shared = replace(alone, block_prefetch=2)
    return (rows, whole), (TALL_ROWS, tall), (SHARED_ROWS - 1, alone), (MANY_ROWS, shared)


def _plain_of_16(isa: IsaRow, weights: WeightFormat) -> TileRanges:
    """The same in 16 registers, for both phases: one row takes a panel as memory gives it, some
    more take two vectors of it and fetch the next K block, and many unpack a block once.
    """
    is_int8 = weights.dtype == "int8"
    is_split = weights.dtype == "bfloat16" or (is_int8 and isa.multiplies_pairs)
    k_unroll = 1 if is_int8 else 2
    rows = FEWEST_ROWS if weights.dtype == "bfloat16" else MOST_ROWS
    some = GemmTile(rows, PAIR_K_BLOCK, k_unroll=k_unroll, nv=2, block_prefetch=1)
    many = GemmTile(MOST_ROWS, PAIR_K_BLOCK, k_unroll=k_unroll, nv=2, is_widened=is_split)
    return _ROW_OF_16, (INT8_ROWS if is_int8 else SOME_ROWS, some), (MANY_ROWS, many)


def _grouped(weights: WeightFormat) -> TileRanges:
    """Two sets of sums, of a group and of groups, or of 16 and of 32 bits: half as many vectors,
    for both phases. Few rows read whole panels, as many of them as do not spill; some fetch the
    next K block while they multiply.
    """
    few = GemmTile(2 if weights.has_minima else PAIR_ROWS, K_BLOCK, k_unroll=4)
    some = GemmTile(TALL_ROWS, PAIR_K_BLOCK, k_unroll=4, nv=1, block_prefetch=1)
    many = GemmTile(MOST_ROWS, K_BLOCK, k_unroll=4, nv=2)
    if weights.has_minima:
        return (few.mr, few), (SOME_ROWS, some), (MANY_ROWS, many)
    pair = GemmTile(PAIR_ROWS, PAIR_K_BLOCK, k_unroll=4, block_prefetch=2)
    return (few.mr, few), (2 * PAIR_ROWS, pair), (SOME_ROWS, some), (MANY_ROWS, many)


def _grouped_of_16() -> TileRanges:
    """The same in 16 registers, for both phases."""
    many = GemmTile(FEWEST_ROWS, K_BLOCK, k_unroll=4, nv=1)
    some = replace(many, kc=PAIR_K_BLOCK, block_prefetch=1)
    return _ROW_OF_16, (SOME_ROWS, some), (MANY_ROWS, many)


def _widening(isa: IsaRow, phase: Phase, weights: WeightFormat) -> TileRanges:
    """Weights that are widened: a tall tile does it once for many rows. It reads a panel vector by
    vector, which memory answers slowly, so that the next K block is fetched, and few rows take
    whole panels; groups have twice the sums.
    """
    few_rows = (2 if weights.group else PAIR_ROWS) if _has_32(isa) else 1
    few = GemmTile(few_rows, K_BLOCK, k_unroll=4)
    rows = 8 if _has_32(isa) else FEW_ROWS
    tall = GemmTile(rows, PAIR_K_BLOCK, k_unroll=4, nv=1, block_prefetch=1)
    if phase is Phase.DECODE:
        return ((few.mr, few), (MANY_ROWS, tall))
    whole, of_groups = (0, 2) if _has_32(isa) else (2, 1)
    nv = of_groups if weights.group else whole
    mr = MOST_ROWS if _has_32(isa) else FEW_ROWS
    widened = GemmTile(mr, K_BLOCK, k_unroll=2, nv=nv, is_widened=True)
    return ((WIDENED_ROWS, tall), (MANY_ROWS, widened))
