"""The GEMM of every ISA this CPU runs, over ragged sizes, tiles, K blocks, cores and epilogues."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from codegen.gemm.nest import Gemm
from codegen.kit import Expr, T
from codegen.reference import gated as gated_by
from codegen.reference import soft_cap
from codegen.spec import Activation, GemmTile, Traits
from codegen.step.epilogues import add_to_residual, store
from codegen.step.epilogues import gate as gate_epilogue
from codegen.step.program import linear, run
from codegen.step.step import Step
from platforms.isa import isa_row
from tests.codegen.conftest import (
    BEST,
    ISAS,
    TARGETS,
    Array,
    Compile,
    Kernel,
    each_target,
    is_poison,
    make_limits,
    make_spec,
    normal,
    panel_of,
    same_bits,
)

NUM_ROWS = [*range(1, 18), 31, 32, 33, 127, 128, 129]
MOST_ROWS = NUM_ROWS[-1]
LAYER = 1  # of two
BLOCK = 16  # values of K in a block, where K is cut
BF16_STEP = 2.0**-8  # of a value just rounded to bf16


@dataclass(frozen=True)
class Size:
    """A matrix: n = panels * panel + vectors * lanes + columns."""

    panels: int
    vectors: int
    columns: int
    k: int
    tile: GemmTile

    def n(self, isa: str) -> int:
        return self.panels * panel_of(isa) + self.vectors * isa_row(isa).lanes + self.columns


SIZES = {
    "less-than-a-vector-of-one-value": Size(0, 0, 3, 1, GemmTile(mr=6, kc=BLOCK, k_unroll=4)),
    "a-panel-less-one-and-one-k-block": Size(1, 0, -1, BLOCK, GemmTile(mr=4, kc=BLOCK, k_unroll=4)),
    "a-panel-and-k-block-plus-one": Size(1, 0, 1, BLOCK + 1, GemmTile(mr=5, kc=BLOCK, k_unroll=4)),
    "three-k-blocks-less-one": Size(
        2, 1, 0, 47, GemmTile(1, BLOCK, k_unroll=3, prefetch_bytes=256)
    ),
    "three-panels": Size(3, 0, 0, 64, GemmTile(mr=3, k_unroll=8)),
}
TILES = {
    "row-by-row": GemmTile(mr=1),
    "a-pair-of-values-at-a-time": GemmTile(mr=2, kc=2, k_unroll=2),
    "blocks-that-do-not-divide-k": GemmTile(mr=4, kc=24, k_unroll=5, prefetch_bytes=512),
    "one-block": GemmTile(mr=3, kc=4096, k_unroll=8, block_prefetch=2),
}
NUM_CORES = (1, 2, 3, 5)  # with each of these tiles
GEMM_TO_COMPARE = Size(2, 1, 1, 45, TILES["row-by-row"])  # three panels, fewer than cores


def lm_head(compile_body: Compile, isa: str, dtype: str, size: Size, num_cores: int = 1) -> Kernel:
    """logits = final x lm_head for random operands: any n and k, no layers, no bias."""
    spec = make_spec(
        isa,
        dtype,
        tile=size.tile,
        num_cores=num_cores,
        vocab_size=size.n(isa),
        hidden_size=size.k,
        limits=make_limits(max_num_logits=MOST_ROWS),
    )

    def body(step: Step) -> None:
        gemm = linear(step, "lm_head", "final", store(step, "lm_head", "logits"))
        run(step, "lm_head", lambda core: gemm.emit(core, step.spec.cut, step.num_logits))

    kernel = compile_body(spec, body)
    kernel.set_weight("lm_head", normal(size.n(isa), size.k, seed=1))
    kernel.set_acts("final", normal(MOST_ROWS, size.k, seed=2))
    return kernel


def logits(kernel: Kernel, num_rows: int) -> Array:
    """Of the first rows, after a look that no other row was written."""
    kernel.poison("logits", "partial")
    kernel(num_logits=num_rows)
    assert is_poison(kernel["logits"][num_rows:])
    assert is_poison(kernel["partial"][num_rows * kernel["logits"].shape[1] :])
    return kernel["logits"][:num_rows].copy()


def product(kernel: Kernel, role: str, acts: str, num_rows: int, layer: int | None = None) -> Array:
    """(value, bound of the rounding errors) of every element, in float64."""
    layout = kernel.model.panels(role)
    weight = layout.unpack(kernel.model.matrix(kernel.arrays, role, layer)).astype(np.float64)
    a = kernel.acts(acts)[:num_rows, : layout.k].astype(np.float64)
    bound = 2 * (layout.k + 2) * 2.0**-24 * (np.abs(a) @ np.abs(weight).T)
    return np.stack((a @ weight.T, bound))


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@each_target
def test_any_number_of_rows_by_any_matrix(
    compile_body: Compile, isa: str, dtype: str, size: Size
) -> None:
    kernel = lm_head(compile_body, isa, dtype, size)
    full = logits(kernel, MOST_ROWS)
    expected, bound = product(kernel, "lm_head", "final", MOST_ROWS)
    assert (np.abs(full[:, : size.n(isa)] - expected) <= bound).all()
    assert not full[:, size.n(isa) :].any()  # padding
    for num_rows in NUM_ROWS:
        assert same_bits(logits(kernel, num_rows), full[:num_rows]), num_rows


@each_target
def test_a_row_is_the_same_to_the_last_bit_for_every_tile_and_number_of_cores(
    compile_body: Compile, isa: str, dtype: str
) -> None:
    results = {}
    for num_cores, (name, tile) in zip(NUM_CORES, TILES.items(), strict=True):
        size = replace(GEMM_TO_COMPARE, tile=tile)
        results[name] = logits(lm_head(compile_body, isa, dtype, size, num_cores), 17)
    first = results["row-by-row"]
    assert np.isfinite(first).all()
    assert [name for name, other in results.items() if not same_bits(first, other)] == []


BIASED_OR_NOT = [
    *(
        pytest.param(*target.values, True, id=f"{target.id}-bias", marks=target.marks)
        for target in TARGETS
    ),
    pytest.param(BEST, "bfloat16", False),
]


def epilogue_kernel(
    compile_body: Compile, isa: str, dtype: str, role: str, acts: str, epilogue: Any, **shape: Any
) -> Kernel:
    """One GEMM of layer 1, with random operands and bias."""
    spec = make_spec(
        isa,
        dtype,
        tile=GemmTile(mr=3, kc=BLOCK, k_unroll=2),
        num_cores=2,
        hidden_size=2 * panel_of(isa) + 3,
        intermediate_size=panel_of(isa) + 5,
        limits=make_limits(max_num_tokens=20),
        **shape,
    )

    def body(step: Step) -> None:
        layer = T.int32(LAYER)

        def product(core: Expr) -> None:
            gemm: Gemm = linear(step, role, acts, epilogue(step, (layer,), core), (layer,))
            gemm.emit(core, spec.cut, step.num_tokens)

        run(step, role, product)

    kernel = compile_body(spec, body)
    layout = kernel.model.panels(role)
    weight = normal(layout.n, layout.k, seed=1)
    bias = normal(layout.n, seed=3)
    if role == "gate_up":  # there is padding between the halves
        columns = [kernel.model.matrices[role].columns(half) for half in ("gate", "up")]
        padding = np.setdiff1d(np.arange(layout.n), columns)
        weight[padding] = bias[padding] = 0.0
    kernel.set_weight(role, weight, LAYER)
    kernel.set_acts(acts, normal(20, layout.k, seed=2))
    if role + "_bias" in kernel.arrays:
        kernel[role + "_bias"][LAYER, : layout.n] = bias
    return kernel


def biased(kernel: Kernel, role: str, acts: str, num_rows: int) -> Array:
    layout = kernel.model.panels(role)
    expected, bound = product(kernel, role, acts, num_rows, LAYER)
    if role + "_bias" in kernel.arrays:
        expected += kernel[role + "_bias"][LAYER, : layout.n]
    return np.stack((expected, bound + 2.0**-22 * np.abs(expected)))


@pytest.mark.parametrize(("isa", "dtype", "has_bias"), BIASED_OR_NOT)
def test_qkv_is_stored_with_its_bias(
    compile_body: Compile, isa: str, dtype: str, has_bias: bool
) -> None:
    kernel = epilogue_kernel(
        compile_body,
        isa,
        dtype,
        "qkv",
        "normed",
        lambda step, which, core: store(step, "qkv", "qkv_out", which),
        qkv_bias=has_bias,
    )
    kernel(num_tokens=8)
    expected, bound = biased(kernel, "qkv", "normed", 8)
    n = kernel.model.panels("qkv").n
    assert (np.abs(kernel["qkv_out"][:8, :n] - expected) <= bound).all()
    assert not kernel["qkv_out"][:8, n:].any()
    assert is_poison(kernel["qkv_out"][8:])


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_stored_goes_through_a_soft_cap(compile_body: Compile, isa: str) -> None:
    kernel = epilogue_kernel(
        *(compile_body, isa, "float32", "qkv", "normed"),
        lambda step, which, core: store(step, "qkv", "qkv_out", which, cap=0.8),
    )
    kernel(num_tokens=8)
    sums, bound = biased(kernel, "qkv", "normed", 8)
    n = kernel.model.panels("qkv").n
    expected = soft_cap(sums, 0.8)
    assert (np.abs(kernel["qkv_out"][:8, :n] - expected) <= bound + 1e-6).all()
    assert not kernel["qkv_out"][:8, n:].any()


@pytest.mark.parametrize(("isa", "dtype", "has_bias"), BIASED_OR_NOT)
def test_down_is_added_to_the_residual_stream(
    compile_body: Compile, isa: str, dtype: str, has_bias: bool
) -> None:
    role, acts = "down", "gated"
    kernel = epilogue_kernel(
        compile_body,
        isa,
        dtype,
        role,
        acts,
        lambda step, which, core: add_to_residual(step, role, which),
        mlp_bias=has_bias,
    )
    hidden = kernel.spec.shape.hidden_size
    before = np.zeros((8, kernel.model.hidden_padded), np.float32)
    before[:, :hidden] = normal(8, hidden, seed=4)
    kernel["x"][:8] = before
    kernel(num_tokens=8)
    expected, bound = biased(kernel, role, acts, 8)
    expected += before[:, :hidden]
    bound += 2.0**-22 * np.abs(expected)
    assert (np.abs(kernel["x"][:8, :hidden] - expected) <= bound).all()
    assert not kernel["x"][:8, hidden:].any()
    assert is_poison(kernel["x"][8:])


@pytest.mark.parametrize(("isa", "dtype", "has_bias"), BIASED_OR_NOT)
def test_gate_and_up_leave_as_their_silu_product(
    compile_body: Compile, isa: str, dtype: str, has_bias: bool
) -> None:
    check_gated(compile_body, isa, dtype, has_bias, Activation.SILU)


@pytest.mark.parametrize(("isa", "dtype", "has_bias"), BIASED_OR_NOT)
def test_gate_and_up_leave_as_their_gelu_product(
    compile_body: Compile, isa: str, dtype: str, has_bias: bool
) -> None:
    check_gated(compile_body, isa, dtype, has_bias, Activation.GELU_TANH)


def check_gated(
    compile_body: Compile, isa: str, dtype: str, has_bias: bool, activation: Activation
) -> None:
    kernel = epilogue_kernel(
        compile_body,
        isa,
        dtype,
        "gate_up",
        "normed",
        lambda step, which, core: gate_epilogue(step, "gate_up", "gated", which, core),
        mlp_bias=has_bias,
        traits=Traits(activation=activation),
    )
    kernel(num_tokens=8)
    both, bound = biased(kernel, "gate_up", "normed", 8)
    columns = [kernel.model.matrices["gate_up"].columns(half) for half in ("gate", "up")]
    gate, up = (both[:, at] for at in columns)
    error = sum(bound[:, at] for at in columns) * (1 + np.abs(gate) + np.abs(up))
    expected = gated_by(gate.astype(np.float32), up.astype(np.float32), activation)
    error += (BF16_STEP if kernel.kit.has_dot else 2e-6) * np.abs(expected)
    size = kernel.spec.shape.intermediate_size
    gated = kernel.acts("gated")
    assert (np.abs(gated[:8, :size] - expected) <= error).all()
    assert not gated[:8, size:].any()
    assert is_poison(kernel["gated"][8:])
