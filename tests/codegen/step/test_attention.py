"""Paged attention of every ISA this CPU runs, in a cache that holds NaN wherever no token is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from codegen import reference
from codegen.kit import T
from codegen.layout.model import KvLayout
from codegen.spec import Phase, Traits
from codegen.step.arguments import Layouts
from codegen.step.attention import attention
from codegen.step.elementwise import query_scale
from codegen.step.program import run
from sandwich.executor.inputs import query_tiles
from tests.codegen.conftest import (
    BEST,
    BLOCK_SIZE,
    ISAS,
    NAN_WORD,
    TARGETS,
    Array,
    Compile,
    Kernel,
    is_poison,
    make_limits,
    make_spec,
    normal,
    read_acts,
    same_bits,
    write_acts,
)

LAYER = 1  # of two
MOST_TOKENS = 256
NUM_BLOCKS = 16
BF16_STEP = 2.0**-8  # of a value just rounded to bf16


@dataclass(frozen=True)
class Heads:
    """Sizes of attention; query_tile is that of prefill."""

    group: int
    kv_heads: int
    head_dim: int
    query_tile: int

    def __str__(self) -> str:
        return f"{self.group}x{self.kv_heads}-of-{self.head_dim}-tile-{self.query_tile}"


ALONE = Heads(group=1, kv_heads=3, head_dim=16, query_tile=8)
PAIRS = Heads(group=2, kv_heads=1, head_dim=20, query_tile=5)
THREES = Heads(group=3, kv_heads=2, head_dim=8, query_tile=4)
FOURS = Heads(group=4, kv_heads=2, head_dim=64, query_tile=3)


@dataclass(frozen=True)
class Chunk:
    """The last `num_queries` of `context` tokens ask; `seed` gives its numbers."""

    context: int
    num_queries: int
    seed: int


# Contexts around the size of a block; all of a prompt, chunks that begin inside a block and at its
# start; whole tiles, tails, single tokens.
CHUNKS = [
    Chunk(context, queries, seed)
    for seed, (context, queries) in enumerate(
        [
            (1, 1),
            (BLOCK_SIZE - 1, BLOCK_SIZE - 1),
            (BLOCK_SIZE, BLOCK_SIZE),
            (BLOCK_SIZE + 1, BLOCK_SIZE + 1),
            (3 * BLOCK_SIZE, 3 * BLOCK_SIZE),
            (2 * BLOCK_SIZE + 7, 7),
            (BLOCK_SIZE + 11, 12),
            (2 * BLOCK_SIZE + 1, 1),
        ]
    )
]


def make_kernel(
    compile_body: Compile,
    isa: str,
    dtype: str,
    heads: Heads,
    phase: Phase = Phase.PREFILL,
    kv_dtype: str | None = None,
    num_cores: int = 2,
    **traits: Any,
) -> Kernel:
    spec = make_spec(
        isa,
        dtype,
        kv_dtype=kv_dtype,
        phase=phase,
        num_cores=num_cores,
        query_tile=heads.query_tile if phase is Phase.PREFILL else 1,
        limits=make_limits(
            max_num_tokens=MOST_TOKENS, max_num_seqs=len(CHUNKS), num_blocks=NUM_BLOCKS
        ),
        num_heads=heads.group * heads.kv_heads,
        num_kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        traits=Traits(**traits),
    )
    return compile_body(
        spec,
        lambda step: run(step, "attention", lambda core: attention(step, core, T.int32(LAYER))),
    )


def kv_of(kernel: Kernel) -> KvLayout:
    return Layouts.of(kernel.spec).kv


def block_tables(chunks: Sequence[Chunk]) -> Array:
    """Scattered blocks; what a sequence does not need is zero, somebody else's block."""
    free = list(np.random.default_rng(9).permutation(NUM_BLOCKS))
    tables = np.zeros((len(chunks), 3), np.int32)
    for table, chunk in zip(tables, chunks, strict=True):
        count = -(-chunk.context // BLOCK_SIZE)
        table[:count] = [free.pop() for _ in range(count)]
    return tables


def fill_cache(kernel: Kernel, chunks: Sequence[Chunk], tables: Array) -> None:
    """Each sequence's keys and values in its blocks, as the step before leaves them; else NaN."""
    kv = kv_of(kernel)
    for name in kv.tensor_specs():
        kernel[name].view(np.int32)[:] = NAN_WORD
    kernel["values"][..., kv.head_dim :] = 0  # padding is always zero
    keys, values = kernel["keys"][LAYER], kernel["values"][LAYER]
    for table, chunk in zip(tables, chunks, strict=True):
        positions = np.arange(chunk.context + chunk.context % 2 * (kv.kr - 1))
        slots = table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        new = normal(2, 128, kv.num_kv_heads, kv.head_dim, seed=chunk.seed)[:, : len(slots)]
        new[:, chunk.context :] = 0.0  # the other half of the last pair of bf16 values
        scales = scales_of(kernel)
        reference.write_kv(keys, values, new[0], new[1], slots, kv, scales)
        blocks, offsets = np.divmod(slots[chunk.context :], BLOCK_SIZE)
        if scales:
            for array in scales:
                array[:, blocks, offsets] = np.nan
        else:
            keys[:, blocks, :, offsets] = NAN_WORD if kv.kr == 2 else np.nan


def scales_of(kernel: Kernel) -> list[Array]:
    """Those of keys, then those of values, of the layer."""
    return [kernel[name][LAYER] for name in kv_of(kernel).tensor_specs() if "scales" in name]


def queries_of(kernel: Kernel, chunks: Sequence[Chunk]) -> Array:
    """(tokens, heads, head_dim): the last queries of 128 that each sequence has."""
    shape = kernel.spec.shape
    parts = []
    for chunk in chunks:
        every = normal(128, shape.num_heads, shape.head_dim, seed=100 + chunk.seed)
        parts.append(every[chunk.context - chunk.num_queries : chunk.context])
    return np.concatenate(parts)


def set_queries(kernel: Kernel, queries: Array) -> Array:
    """Store them scaled and padded; what they are after rounding."""
    kv, kit = kv_of(kernel), kernel.kv_kit
    scale = np.float32(query_scale(kernel.spec.shape))
    wide = np.zeros((*queries.shape[:2], kv.head_dim_padded), np.float32)
    wide[..., : kv.head_dim] = queries * scale
    write_acts(kit, kernel["queries"], wide.reshape(len(wide), -1))
    stored = read_acts(kit, kernel["queries"])[: len(wide)].reshape(wide.shape)
    return stored[..., : kv.head_dim] / scale


def attend(kernel: Kernel, chunks: Sequence[Chunk]) -> tuple[Array, Array]:
    """(attended, the same as it ought to be), both (tokens, heads, head_dim) of all chunks."""
    tables = block_tables(chunks)
    fill_cache(kernel, chunks, tables)
    queries = set_queries(kernel, queries_of(kernel, chunks))
    contexts = np.array([chunk.context for chunk in chunks], np.int32)
    counts = [chunk.num_queries for chunk in chunks]
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    tiles = list(query_tiles(counts, kernel.spec.query_tile))
    kernel["tiles"][: len(tiles)] = tiles
    kernel["block_tables"][: len(tables), : tables.shape[1]] = tables
    positions = [np.arange(s.context - s.num_queries, s.context) for s in chunks]
    kernel["positions"][: starts[-1]] = np.concatenate(positions)
    kernel.poison("attended")
    kernel(num_tokens=int(starts[-1]), num_tiles=len(tiles))
    assert is_poison(kernel["attended"][starts[-1] :])
    kv = kv_of(kernel)
    wide = kernel.acts("attended")[: starts[-1]]
    wide = wide[:, : queries.shape[1] * kv.head_dim_padded].reshape(*queries.shape[:2], -1)
    assert not wide[..., kv.head_dim :].any()
    expected = reference.paged_attention(
        queries,
        kernel["keys"][LAYER],
        kernel["values"][LAYER],
        starts,
        contexts,
        tables,
        kv,
        scale=kernel.spec.shape.score_scale,
        cap=kernel.spec.shape.traits.score_cap,
        scales=scales_of(kernel),
    )
    return wide[..., : kv.head_dim].copy(), expected


def assert_close(kernel: Kernel, actual: Array, expected: Array) -> None:
    """Values are of size one and weights add up to one; bf16 rounds weights and results."""
    is_rounded = kernel.kit.has_dot or kernel.kv_kit.has_dot
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * BF16_STEP if is_rounded else 2e-5)


def each_target_with_heads(*each_heads: Heads) -> pytest.MarkDecorator:
    """All of them on the best ISA; of the others every second one is slow, in turn."""
    return pytest.mark.parametrize(
        ("isa", "dtype", "heads"),
        [
            pytest.param(
                *target.values,
                heads,
                id=f"{target.id}-{heads}",
                marks=[*target.marks, *[pytest.mark.slow] * (target.values[0] != BEST and odd)],
            )
            for i, target in enumerate(TARGETS)
            for j, heads in enumerate(each_heads)
            for odd in [(i + j) % 2]
        ],
    )


@each_target_with_heads(ALONE, PAIRS, THREES, FOURS)
def test_prefill_attends_to_all_that_came_before(
    compile_body: Compile, isa: str, dtype: str, heads: Heads
) -> None:
    kernel = make_kernel(compile_body, isa, dtype, heads)
    together, expected = attend(kernel, CHUNKS)
    assert_close(kernel, together, expected)
    # Alone, each sequence has other blocks and other neighbours, but the same result.
    parts = [attend(kernel, [chunk])[0] for chunk in CHUNKS]
    assert same_bits(np.concatenate(parts), together)


@each_target_with_heads(THREES, FOURS)
def test_decode_attends_like_prefill_to_the_last_bit(
    compile_body: Compile, isa: str, dtype: str, heads: Heads
) -> None:
    longest = CHUNKS[4]
    prefill = make_kernel(compile_body, isa, dtype, heads)
    expected, _ = attend(prefill, [longest])
    decode = make_kernel(compile_body, isa, dtype, heads, Phase.DECODE, num_cores=3)
    ends = [1, 2, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 1, 3 * BLOCK_SIZE]
    batch = [Chunk(end, 1, longest.seed) for end in ends]
    together, truth = attend(decode, batch)
    assert_close(decode, together, truth)
    assert same_bits(together, expected[np.array(ends) - 1])
    for row, chunk in enumerate(batch):
        assert same_bits(attend(decode, [chunk])[0][0], together[row])


@each_target_with_heads(PAIRS)
def test_scores_have_a_scale_and_a_soft_cap(
    compile_body: Compile, isa: str, dtype: str, heads: Heads
) -> None:
    kernel = make_kernel(compile_body, isa, dtype, heads, score_scale=0.7, score_cap=1.5)
    capped, expected = attend(kernel, CHUNKS)
    assert_close(kernel, capped, expected)


@pytest.mark.parametrize("heads", [ALONE, THREES])
@pytest.mark.parametrize("isa", ISAS)
def test_integers_in_the_cache_have_scales_of_tokens_and_heads(
    compile_body: Compile, isa: str, heads: Heads
) -> None:
    prefill = make_kernel(compile_body, isa, "float32", heads, kv_dtype="int8")
    together, expected = attend(prefill, CHUNKS)
    np.testing.assert_allclose(together, expected, rtol=0, atol=4 * BF16_STEP)
    decode = make_kernel(compile_body, isa, "float32", heads, Phase.DECODE, "int8", num_cores=3)
    longest = CHUNKS[4]
    whole, _ = attend(prefill, [longest])
    ends = [1, BLOCK_SIZE, BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 1]
    batch = [Chunk(end, 1, longest.seed) for end in ends]
    assert same_bits(attend(decode, batch)[0], whole[np.array(ends) - 1])


@pytest.mark.parametrize(("dtype", "kv_dtype"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@pytest.mark.parametrize("isa", [BEST])
def test_the_cache_may_be_of_another_type_than_the_model(
    compile_body: Compile, isa: str, dtype: str, kv_dtype: str
) -> None:
    kernel = make_kernel(compile_body, isa, dtype, PAIRS, kv_dtype=kv_dtype)
    assert_close(kernel, *attend(kernel, CHUNKS))


@pytest.mark.parametrize("isa", [BEST])
def test_very_large_scores_make_neither_infinity_nor_nan(compile_body: Compile, isa: str) -> None:
    kernel = make_kernel(compile_body, isa, "float32", PAIRS)
    chunk = Chunk(BLOCK_SIZE + 5, BLOCK_SIZE + 5, 0)
    attend(kernel, [chunk])
    kernel["queries"][:] *= 1e6
    kernel.poison("attended")
    count = len(list(query_tiles([chunk.context], PAIRS.query_tile)))
    kernel(num_tokens=chunk.context, num_tiles=count)
    assert np.isfinite(kernel["attended"][: chunk.context]).all()
