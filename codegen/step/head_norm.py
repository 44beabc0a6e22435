"""Norms of queries and keys, in place, before they are rotated.

Source: Henry et al., "Query-Key Normalization for Transformers" (arXiv 2010.04245).
"""

from __future__ import annotations

from codegen.cores.parallel import split
from codegen.kit import Expr, T
from codegen.model.tables import HeadNorms
from codegen.step.operators import NormHeads
from codegen.step.step import Step


def norm_heads(step: Step, core: Expr, op: NormHeads, layer: Expr) -> None:
    """rows[t, columns] = columns / their rms * weight, for each token t of `core` and each norm."""
    begin, end = split(core, step.spec.num_shares, step.num_tokens)
    with T.serial(begin, end) as token:
        first = 0
        for norm in op.norms:
            with T.serial(0, norm.count) as index:
                base = T.bind(first + index * norm.size)
                _norm_columns(step, op.rows, norm, layer, token, base)
            first += norm.count * norm.size


def _norm_columns(
    step: Step, rows: str, norm: HeadNorms, layer: Expr, token: Expr, base: Expr
) -> None:
    """The columns from `base` on; whole vectors of them, then those that are left one by one."""
    kit, b, lanes = step.kit, step.b[rows], step.kit.lanes
    weight = step.b[norm.role]
    whole = norm.size // lanes
    rest = range(whole * lanes, norm.size)
    squares = T.alloc_buffer((lanes,), "float32", scope="local")
    kit.store(squares, (0,), kit.zeros())
    with T.serial(0, whole) as i:
        vector = T.bind(kit.load(b, token, base + i * lanes))
        kit.store(squares, (0,), kit.load(squares, 0) + vector * vector)
    total = T.bind(kit.call("sw_hsum", kit.load(squares, 0)))
    for column in rest:
        value = T.bind(b[token, base + column])
        total = T.bind(total + value * value)
    mean = total / T.float32(norm.size) + T.float32(step.spec.shape.rms_norm_eps)
    scale = T.bind(T.float32(1) / T.sqrt(mean))
    with T.serial(0, whole) as i:
        column = T.bind(base + i * lanes)
        scaled = kit.load(b, token, column) * kit.splat(scale)
        kit.store(b, (token, column), scaled * kit.load(weight, layer, i * lanes))
    for column in rest:
        value = b[token, base + column] * scale * weight[layer, column]
        T.buffer_store(b, value, [token, base + column])
