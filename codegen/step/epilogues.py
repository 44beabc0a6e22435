"""What becomes of the sums of a model's GEMMs: biases, the residual stream, gates, int8.

Each function makes an Epilogue of codegen.gemm.nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from codegen.gemm.nest import Epilogue
from codegen.gemm.register_tile import Place
from codegen.kit import Expr, T
from codegen.layout.panels import PanelLayout
from codegen.spec import Activation
from codegen.step.arguments import UNFINISHED
from codegen.step.step import Step

Index = tuple[Expr, ...]  # of a matrix among those of its role

_PRODUCTS: Final = {
    Activation.SILU: "sw_silu_mul",
    Activation.GELU_TANH: "sw_gelu_tanh_mul",
}


def _biased(
    step: Step, role: str, which: Index, at: Sequence[Expr], vectors: Sequence[Expr]
) -> list[Expr]:
    """The vectors plus the bias of their first columns `at`, if there is one."""
    bias = role + "_bias"
    if not step.has(bias):
        return list(vectors)
    return [
        vector + step.kit.load(step.b[bias], *which, column)
        for column, vector in zip(at, vectors, strict=True)
    ]


def _first_columns(layout: PanelLayout, place: Place) -> list[Expr]:
    """The first column of each vector of a register tile."""
    return [place.panel * layout.panel + j * layout.lanes for j in place.vectors]


def store(step: Step, role: str, out: str, which: Index = (), cap: float = 0.0) -> Epilogue:
    """out = C + bias, through a soft cap if it is not 0"""
    kit, layout = step.kit, step.model.panels(role)

    def epilogue(row: Expr, place: Place, vectors: Sequence[Expr]) -> None:
        at = _first_columns(layout, place)
        for column, vector in zip(at, _biased(step, role, which, at, vectors), strict=True):
            if cap:
                inner = vector * kit.splat(1 / cap)
                vector = kit.call("sw_tanh", inner) * kit.splat(cap)
            kit.store(step.b[out], (row, column), vector)

    return epilogue


def add_to_residual(step: Step, role: str, which: Index) -> Epilogue:
    """x += C + bias"""
    layout = step.model.panels(role)

    def epilogue(row: Expr, place: Place, vectors: Sequence[Expr]) -> None:
        at = _first_columns(layout, place)
        for column, vector in zip(at, _biased(step, role, which, at, vectors), strict=True):
            before = step.kit.load(step.b["x"], row, column)
            step.kit.store(step.b["x"], (row, column), before + vector)

    return epilogue


def gate(step: Step, role: str, out: str, which: Index, core: Expr) -> Epilogue:
    """out = activation(gate) * up, of panels that hold half gate columns, half up columns (GLU,
    arXiv 2002.05202)
    """
    layout = step.model.panels(role)
    product_of = _PRODUCTS[step.spec.shape.traits.activation]

    def epilogue(row: Expr, place: Place, vectors: Sequence[Expr]) -> None:
        at = _first_columns(layout, place)
        both = _biased(step, role, which, at, vectors)
        half = len(both) // 2
        products = [
            T.bind(step.kit.call(product_of, first, second))
            for first, second in zip(both[:half], both[half:], strict=True)
        ]
        if step.group_of(out):
            mine = T.bind(core * step.num_rows_of(role) + row)
            _store_in_groups(step, layout, out, row, mine, place, products)
            return
        for j, product in zip(place.vectors, products, strict=False):
            column = place.panel * (layout.panel // 2) + j * layout.lanes
            step.store_part(out, row, column, product)

    return epilogue


def _store_in_groups(
    step: Step,
    layout: PanelLayout,
    out: str,
    row: Expr,
    mine: Expr,
    place: Place,
    products: Sequence[Expr],
) -> None:
    """Store the vectors of `out` that a register tile has in whole groups: at once if it has
    such. Else each waits in row `mine` for the last of its group, which the same core computes
    before it leaves the panel.
    """
    size = step.group_of(out)
    lanes, per_group, width = layout.lanes, size // layout.lanes, place.num_vectors // 2
    first_group = place.panel * (layout.panel // 2 // size)
    first, *_ = place.vectors
    if len(products) % per_group == 0 and place.columns[0] % per_group == 0:
        for i in range(0, len(products), per_group):
            group = first_group + (first + i) // per_group
            step.store_group(out, row, group, products[i : i + per_group])
        return
    waiting = step.b[UNFINISHED]

    def finish(j: Expr, product: Expr, before: int) -> None:
        vectors = [T.bind(step.kit.load(waiting, mine, i * lanes)) for i in range(before)]
        step.store_group(out, row, first_group + j // per_group, [*vectors, product])

    for i, product in enumerate(products):
        j = T.bind(T.cast(first + i, "int32"))
        rest = width % per_group  # vectors of the panel's last group, if it is shorter
        with T.If((j + 1) % per_group == 0):
            with T.Then():
                finish(j, product, per_group - 1)
            with T.Else():
                step.kit.store(waiting, (mine, j % per_group * lanes), product)
                if rest:
                    with T.If(j == width - 1), T.Then():
                        finish(j, product, rest - 1)
