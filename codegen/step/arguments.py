"""The arguments of a phase program: their order, shapes and types, and the layouts they follow.

`argument_specs` is the one list; the executor allocates from it and
`codegen.step.step.Step.declare` turns it into the parameters of a function. Values only, so that
memory can be planned without a compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from codegen.cores.barrier import barrier_spec
from codegen.cores.claims import claims_spec
from codegen.layout.arrays import TensorSpec, round_up
from codegen.layout.model import KvLayout, ModelLayout
from codegen.layout.operands import Int8Rows, Operands
from codegen.layout.panels import PanelLayout
from codegen.spec import MAX_TOP, SCORE_PARTS, ProgramSpec
from codegen.step.operators import Collect, End, StepOperators, step_operators
from platforms.isa import IsaRow, isa_row

SCALARS = ("num_tokens", "num_tiles", "num_logits", "num_scored")
FLOAT_ROWS = "_rows"  # after the name of activations that wait to be rounded, as float32
UNFINISHED = "unfinished"  # vectors of `gated` that wait for the rest of their group, as float32
TILE_FIELDS = 3  # sequence, first token row, number of tokens
TIMER_WORDS = 3  # of codegen/step/timing.py, before a counter for each operator


@dataclass(frozen=True)
class Layouts:
    """The layouts a ProgramSpec implies."""

    model: ModelLayout
    kv: KvLayout

    @staticmethod
    def of(spec: ProgramSpec) -> Layouts:
        """Weights by formats and panel, KV cache by kv_dtype and blocks."""
        shape, lanes = spec.shape, isa_row(spec.isa).lanes
        return Layouts(
            ModelLayout.build(shape, spec.dtype, lanes, spec.panel, spec.weights, spec.lm_head),
            KvLayout.of_shape(
                shape, spec.limits.block_size, lanes, spec.kv_dtype, spec.limits.num_blocks
            ),
        )


def _num_partial(spec: ProgramSpec, model: ModelLayout) -> int:
    """Partial sums of a product of a role whose tile cuts K; one if there is none."""
    most = 1
    for role, matrix in model.matrices.items():
        layout = matrix.panels
        if any(layout.num_k_blocks(tile.kc) > 1 for _, tile in spec.ranges(role)):
            most = max(most, num_rows(spec, model, role) * layout.n_padded)
    return most


def int8_rows(isa: IsaRow, panels: PanelLayout) -> Int8Rows | None:
    """The form of activations that meet `panels`, or None if they are floats."""
    return Int8Rows(isa, panels) if panels.format.has_int8_activations else None


def num_rows(spec: ProgramSpec, model: ModelLayout, role: str) -> int:
    """The most rows that meet the matrix `role`."""
    matrix, limits = model.matrices[role].matrix, spec.limits
    return limits.max_num_tokens * matrix.per_token if matrix.in_layers else limits.max_num_logits


def _activation_specs(
    spec: ProgramSpec, model: ModelLayout, operators: StepOperators
) -> dict[str, TensorSpec]:
    """The arrays of all activations. Operators write whole vectors; what they do not write stays
    zero.
    """
    isa, float32 = isa_row(spec.isa), np.dtype(np.float32)
    operands = Operands(isa, spec.dtype)
    gated = [op.out for op in operators.products if op.end is End.GATE]
    specs: dict[str, TensorSpec] = {}
    for name, role in operators.activations.items():
        panels, count = model.panels(role), num_rows(spec, model, role)
        columns = round_up(panels.k, model.lanes)
        if form := int8_rows(isa, panels):
            specs |= form.specs(name, count)
            if name in operators.rounded_apart:
                specs[name + FLOAT_ROWS] = TensorSpec((count, columns), float32)
            elif name in gated:
                waiting = panels.format.group - model.lanes  # all but the last vector
                shape = (spec.num_shares * count, waiting)
                specs[UNFINISHED] = TensorSpec(shape, float32)
        else:
            words = operands.act_words(max(columns, panels.k_padded))
            specs[name] = TensorSpec((count, words), np.dtype(operands.act_dtype))
    return specs


def _product_specs(
    spec: ProgramSpec, model: ModelLayout, operators: StepOperators
) -> dict[str, TensorSpec]:
    """The arrays of products that are stored as they are, and of those of experts, collected."""
    float32 = np.dtype(np.float32)
    collected = TensorSpec((spec.limits.max_num_tokens, model.hidden_padded), float32)
    return {
        op.out: collected for op, _ in operators if isinstance(op, Collect) and op.out != "x"
    } | {
        op.out: TensorSpec(
            (num_rows(spec, model, op.name), model.panels(op.name).n_padded), float32
        )
        for op in operators.products
        if op.end is End.STORE
    }


def _routing_specs(spec: ProgramSpec) -> dict[str, TensorSpec]:
    """The arrays of `codegen.step.routing`, if the model has experts."""
    experts, tokens = spec.shape.traits.experts, spec.limits.max_num_tokens
    if experts is None:
        return {}
    of_tokens, int32 = (tokens, experts.per_token), np.dtype(np.int32)
    return {
        "expert_ids": TensorSpec(of_tokens, int32),
        "expert_shares": TensorSpec(of_tokens, np.dtype(np.float32)),
        "expert_rows": TensorSpec(of_tokens, int32),
        "row_tokens": TensorSpec((tokens * experts.per_token,), int32),
        "expert_starts": TensorSpec((experts.count + 1,), int32),
        "chosen_experts": TensorSpec((experts.count,), int32),
        "num_chosen": TensorSpec((1,), int32),
    }


def argument_specs(spec: ProgramSpec) -> dict[str, dict[str, TensorSpec]]:
    """The program's buffers in order, by kind: "metadata", "weights", "cache", "workspace"."""
    layouts, isa = Layouts.of(spec), isa_row(spec.isa)
    cache = Operands(isa, layouts.kv.format.product_dtype)
    model, kv, shape, limits = layouts.model, layouts.kv, spec.shape, spec.limits
    operators = step_operators(model)
    int32, float32 = np.dtype(np.int32), np.dtype(np.float32)
    kv_act = np.dtype(cache.act_dtype)
    tokens, logits = limits.max_num_tokens, limits.max_num_logits

    def rows(count: int, columns: int, dtype: np.dtype[Any]) -> TensorSpec:
        return TensorSpec((count, columns), dtype)

    ticks = TensorSpec((len(operators.names) + TIMER_WORDS,), np.dtype(np.int64))
    return {
        "metadata": {
            "token_ids": TensorSpec((tokens,), int32),
            "positions": TensorSpec((tokens,), int32),
            "slots": TensorSpec((tokens,), int32),
            "tiles": rows(tokens, TILE_FIELDS, int32),
            "block_tables": rows(limits.max_num_seqs, limits.max_blocks_per_seq, int32),
            "logit_rows": TensorSpec((tokens,), int32),
            "targets": TensorSpec((tokens,), int32),
            "num_tops": TensorSpec((tokens,), int32),
            "stop": TensorSpec((1,), int32),
        },
        "weights": model.tensor_specs(),
        "cache": kv.tensor_specs(),
        "workspace": {
            "x": rows(tokens, model.hidden_padded, float32),
            **_activation_specs(spec, model, operators),
            **_product_specs(spec, model, operators),
            **_routing_specs(spec),
            "queries": rows(tokens, shape.num_heads * cache.act_words(kv.head_dim_padded), kv_act),
            "partial": TensorSpec((_num_partial(spec, model),), float32),
            "best_values": rows(spec.num_shares, logits, float32),
            "best_ids": rows(spec.num_shares, logits, int32),
            "share_totals": rows(SCORE_PARTS, logits, float32),
            "share_before": rows(SCORE_PARTS, logits, int32),
            "share_top_logits": TensorSpec((SCORE_PARTS, logits, MAX_TOP), float32),
            "share_top_ids": TensorSpec((SCORE_PARTS, logits, MAX_TOP), int32),
            "argmax": TensorSpec((tokens,), int32),
            "peaks": TensorSpec((tokens,), float32),
            "totals": TensorSpec((tokens,), float32),
            "chosen": TensorSpec((tokens,), float32),
            "ranks": TensorSpec((tokens,), int32),
            "top_logits": rows(tokens, MAX_TOP, float32),
            "top_ids": rows(tokens, MAX_TOP, int32),
            "barrier": barrier_spec(spec.groups),
            "claims": claims_spec(spec.num_cores),
        }
        | ({"ticks": ticks} if spec.has_timers else {}),
    }
