"""A tiny model in memory, the executors that run it, and batches for them without a scheduler."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.layout.arrays import bf16_from_float32
from codegen.layout.model import KvLayout, ModelLayout
from codegen.spec import GemmTile, ModelShape, Phase, WeightFormat
from platforms.isa import isa_row, select_isa
from platforms.memory import Arena
from sandwich.executor.assembly import compiled_executor
from sandwich.executor.base import Batch, ExecutorLimits
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.reference import ReferenceExecutor
from sandwich.models.rope import RopeConfig, fill_tables
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import Want
from sandwich.weights.load import ModelWeights
from schedules.plan import Plan, PlanPair
from schedules.tiles.default_plans import panel_width

Array = np.ndarray

BLOCK_SIZE = 32
CPUS = tuple(sorted(os.sched_getaffinity(0))[:2])
SHAPE = ModelShape(
    num_layers=2,
    hidden_size=44,
    num_heads=6,
    num_kv_heads=2,
    head_dim=12,
    intermediate_size=39,
    vocab_size=83,
    rms_norm_eps=1e-5,
    qkv_bias=True,
    o_bias=False,
    mlp_bias=True,
    tied_embeddings=False,
    max_model_len=96,
)
LIMITS = ExecutorLimits(
    block_size=BLOCK_SIZE,
    num_blocks=13,
    max_num_seqs=4,
    max_num_batched_tokens=80,
    max_model_len=96,
    vocab_size=SHAPE.vocab_size,
)
# Small tiles: quick to compile, with tails for most numbers of rows.
PREFILL_TILE = GemmTile(mr=2, kc=16, k_unroll=2)
DECODE_TILE = GemmTile(mr=2, prefetch_bytes=1024)


@dataclass(frozen=True)
class TinyModel:
    """Random weights in the layout of an ISA, and the plans for it."""

    weights: ModelWeights
    kv: KvLayout
    plans: PlanPair

    @staticmethod
    def make(
        isa: str,
        dtype: str,
        kv_dtype: str | None = None,
        weights: WeightFormat | None = None,
        lm_head: WeightFormat | None = None,
        **shape: Any,
    ) -> TinyModel:
        row = isa_row(isa)
        sizes = ModelShape(**(vars(SHAPE) | shape))
        layout = ModelLayout.build(sizes, dtype, row.lanes, panel_width(row), weights, lm_head)
        kv = KvLayout(
            sizes.num_layers,
            sizes.num_kv_heads,
            sizes.head_dim,
            BLOCK_SIZE,
            row.lanes,
            kv_dtype or dtype,
            LIMITS.num_blocks,
        )

        def plan(phase: Phase, tile: GemmTile, query_tile: int) -> Plan:
            tiles = tuple((role, ((1, tile),)) for role in layout.matrices)
            return Plan(phase, isa, CPUS, tiles, query_tile)

        plans = PlanPair(
            layout.panel, plan(Phase.PREFILL, PREFILL_TILE, 2), plan(Phase.DECODE, DECODE_TILE, 1)
        )
        return TinyModel(random_weights(layout), kv, plans)

    def compiled(self, cache_dir: Path, limits: ExecutorLimits = LIMITS) -> CompiledExecutor:
        return compiled_executor(
            self.plans,
            self.weights.layout,
            self.kv,
            limits,
            lambda: self.weights,
            cache_dir,
            is_pinned=False,
        )

    def reference(self, limits: ExecutorLimits = LIMITS) -> ReferenceExecutor:
        return ReferenceExecutor(self.weights, self.kv, limits)


def random_weights(layout: ModelLayout) -> ModelWeights:
    """Weights large enough that attention is not flat and logits differ by units."""
    arena = Arena(layout.weight_bytes, "weights")
    tensors = {n: arena.array(s.shape, s.dtype) for n, s in layout.tensor_specs().items()}
    rng, shape = np.random.default_rng(1), layout.shape

    def rows(n: int, k: int, dtype: np.dtype[Any]) -> Array:
        values = (rng.standard_normal((n, k)) * 1.2 * k**-0.5).astype(np.float32)
        return bf16_from_float32(values) if dtype == np.uint16 else values

    for role, matrix in layout.matrices.items():
        stack = layout.stack(role)
        for which in np.ndindex(*stack):
            packed = layout.matrix(tensors, role, *which)
            for part, n in matrix.matrix.parts:
                matrix.pack(part, rows(n, matrix.matrix.k, matrix.panels.value_dtype), 0, packed)
        if role + "_bias" in tensors:
            columns = [matrix.columns(part) for part, _ in matrix.matrix.parts]
            where = np.concatenate(columns)
            tensors[role + "_bias"][..., where] = rng.standard_normal((*stack, len(where))) * 0.5
    for name in ("input_norm", "post_attention_norm", "norm"):
        tensors[name][..., : shape.hidden_size] = rng.uniform(0.5, 1.5, shape.hidden_size)
    if "embed_tokens" in tensors:
        table = tensors["embed_tokens"]
        table[:] = rows(shape.vocab_size, shape.hidden_size, table.dtype)
    fill_tables(RopeConfig(), shape.head_dim, tensors["rope_cos"], tensors["rope_sin"])
    return ModelWeights(layout, tensors)


class Sequences:
    """Sequences in scattered blocks of their own, and the batches that take them on."""

    def __init__(self, limits: ExecutorLimits = LIMITS) -> None:
        tables = np.random.default_rng(5).permutation(limits.num_blocks).tolist()
        per_seq = limits.num_blocks // limits.max_num_seqs
        self._requests = [
            Request(f"r{i}", [], SamplingParams()) for i in range(limits.max_num_seqs)
        ]
        for i, request in enumerate(self._requests):
            request.block_table.ids += tables[i * per_seq : (i + 1) * per_seq]

    def batch(
        self,
        phase: Phase,
        chunks: Mapping[int, Sequence[int]],
        logit_rows: Sequence[int] | None = None,
        wants: Sequence[Want] | None = None,
    ) -> Batch:
        """The next tokens of some sequences; logits of all tokens, unless rows or more is named."""
        requests = [self._requests[seq] for seq in chunks]
        starts = [request.num_tokens for request in requests]
        for request, chunk in zip(requests, chunks.values(), strict=True):
            for token_id in chunk:
                request.accept(token_id, now=0.0)
        owners = [index for index, chunk in enumerate(chunks.values()) for _ in chunk]
        rows = range(len(owners)) if logit_rows is None else logit_rows
        return Batch(
            phase=phase,
            requests=tuple(requests),
            starts=starts,
            num_new=[len(chunk) for chunk in chunks.values()],
            num_tokens=len(owners),
            logit_rows=rows,
            sampled=[owners[row] for row in rows],
            wants=[Want(needs_logits=True)] * len(rows) if wants is None else wants,
        )


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, SHAPE.vocab_size, count).tolist()


@pytest.fixture(scope="module")
def model() -> TinyModel:
    """In float32, for the best ISA of this machine."""
    return TinyModel.make(select_isa().name, "float32")


@pytest.fixture(scope="module")
def compiled(model: TinyModel, cache_dir: Path) -> Iterator[CompiledExecutor]:
    with closing(model.compiled(cache_dir)) as made:
        yield made


@pytest.fixture
def sequences() -> Sequences:
    """All empty; the cache of an executor still holds what others left there."""
    return Sequences()
