"""Whole phase programs with quantised weights, against the reference executor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from codegen.layout.model import ModelLayout
from codegen.spec import Experts, Phase, Traits, WeightFormat
from codegen.step.operators import step_operators
from sandwich.executor.base import Batch, Executor
from sandwich.executor.verify import relative_errors
from tests.codegen.conftest import BEST, ISAS, Array, make_shape, same_bits
from tests.sandwich.executor.conftest import Sequences, TinyModel, tokens

INT8 = WeightFormat("int8")
W8A8 = WeightFormat("int8", activations="int8")
INT4 = WeightFormat("int4", activations="int8", group=32, scale_dtype="float16")
ZERO_POINTS = WeightFormat("int4", "int8", 64, "bfloat16", has_zero_points=True)
# Integers are exact, so nearly every row agrees as in float32. But a value next to the middle
# between two integers may be rounded to the other one: a whole step of 1/64 or less of the largest
# that it shares a scale with. That row differs then, and what attends to it does too.
MOST_ROWS = 1e-5
ALL_ROWS = 0.05


@dataclass(frozen=True)
class Case:
    """Formats of a tiny model in float32.

    Two KV heads share num_heads: four leave attention in whole groups of 32 columns where vectors
    have 16 lanes, six do not. experts: in the place of the MLP.
    """

    weights: WeightFormat
    lm_head: WeightFormat
    is_tied: bool
    num_heads: int = 6
    experts: Experts | None = None

    @property
    def name(self) -> str:
        experts = ", experts" if self.experts else ""
        return f"{self.weights.name}, head {self.lm_head.name}{', tied' * self.is_tied}{experts}"


EXPERTS = Experts(count=19, per_token=3, size=70)  # a decode step leaves most of them without rows
INT4_FLOAT = WeightFormat("int4", group=32)
MINIMA = WeightFormat("int4", "int8", 32, "float16", has_minima=True)
MINIMA_FLOAT = replace(MINIMA, activations="float")
CASES = [
    Case(INT8, INT8, is_tied=True),
    Case(INT4, W8A8, is_tied=False, num_heads=4),
    Case(MINIMA, W8A8, is_tied=True, num_heads=4, experts=EXPERTS),
]
SLOW_CASES = [
    *(
        Case(weights, weights, is_tied=False, experts=EXPERTS)
        for weights in (INT8, W8A8, INT4, ZERO_POINTS, INT4_FLOAT, MINIMA_FLOAT)
    ),
    Case(W8A8, W8A8, is_tied=True),
    Case(ZERO_POINTS, INT4, is_tied=True),
    Case(INT4, ZERO_POINTS, is_tied=True),
    Case(INT4_FLOAT, INT4_FLOAT, is_tied=True),
    Case(MINIMA, MINIMA, is_tied=True),
]
EACH_CASE = [
    pytest.param((isa, case), id=f"{isa}, {case.name}", marks=[pytest.mark.slow] * is_slow)
    for isa in ISAS
    for case in (*CASES, *SLOW_CASES)
    for is_slow in [isa != BEST or case in SLOW_CASES]
]


@dataclass(frozen=True)
class Pair:
    """A compiled program and the truth about it."""

    compiled: Executor
    reference: Executor

    def row_errors(self, batch: Batch) -> Array:
        """The largest difference in each row of logits, as a share of its largest logit."""
        actual, expected = self.compiled.run(batch), self.reference.run(batch)
        np.testing.assert_array_equal(actual.argmax, actual.logits.argmax(axis=1))
        return relative_errors(actual.logits, expected.logits).max(axis=1)

    def logits(self, batch: Batch) -> Array:
        return self.compiled.run(batch).logits.copy()


def with_narrow_tiles(model: TinyModel) -> TinyModel:
    """The same with a prefill plan whose register tiles have a vector of gate and one of up: less
    than a group.
    """
    prefill = model.plans.prefill
    tiles = tuple(
        (role, tuple((bound, replace(tile, nv=2)) for bound, tile in ranges))
        for role, ranges in prefill.tiles
    )
    plans = replace(model.plans, prefill=replace(prefill, tiles=tiles))
    return replace(model, plans=plans)


@pytest.fixture(scope="module", params=EACH_CASE)
def pair(request: pytest.FixtureRequest, cache_dir: Path) -> Iterator[Pair]:
    isa, case = request.param
    model = TinyModel.make(
        isa,
        "float32",
        weights=case.weights,
        lm_head=case.lm_head,
        tied_embeddings=case.is_tied,
        num_heads=case.num_heads,
        traits=Traits(experts=case.experts),
    )
    if case.weights.group:
        model = with_narrow_tiles(model)
    with closing(model.compiled(cache_dir)) as compiled:
        yield Pair(compiled, model.reference())


def test_both_phases_compute_what_the_reference_computes(pair: Pair) -> None:
    sequences = Sequences()
    one, two = [5], [6, 7]
    errors = np.concatenate(
        [
            pair.row_errors(batch)
            for batch in (
                sequences.batch(Phase.PREFILL, {0: tokens(37, 1), 2: one, 3: tokens(33, 3)}),
                sequences.batch(Phase.DECODE, {3: one, 0: one, 2: one}),
                sequences.batch(Phase.PREFILL, {1: tokens(32, 5), 0: two}),
                sequences.batch(Phase.DECODE, {0: one, 1: one, 2: one, 3: one}),
            )
        ]
    )
    assert np.median(errors) <= MOST_ROWS
    assert errors.max() <= ALL_ROWS


def test_logits_are_the_same_to_the_last_bit_in_any_chunk_phase_and_batch(pair: Pair) -> None:
    prompt = tokens(40, 1)
    whole = pair.logits(Sequences().batch(Phase.PREFILL, {0: prompt}))
    sequences = Sequences()
    others = {1: tokens(5, 2), 3: tokens(31, 3)}
    first = pair.logits(sequences.batch(Phase.PREFILL, {1: others[1], 2: prompt[:33]}))
    second = pair.logits(sequences.batch(Phase.PREFILL, {3: others[3], 2: prompt[33:36]}))
    rest = [
        pair.logits(sequences.batch(Phase.DECODE, {3: [1], 2: [token], 1: [2]}))[1]
        for token in prompt[36:]
    ]
    assert same_bits(np.concatenate((first[5:], second[31:], rest)), whole)


GROUP = WeightFormat("int4", "int8", 32)


@pytest.mark.parametrize(
    ("weights", "shape", "apart"),
    [
        (None, {}, ()),
        (W8A8, {"head_dim": 64}, ("attended", "gated")),
        (GROUP, {"head_dim": 64}, ()),
        (GROUP, {"head_dim": 16, "num_heads": 4}, ()),  # a group is two heads
        (GROUP, {"head_dim": 16}, ("attended",)),
        (replace(GROUP, group=64), {"head_dim": 64}, ("gated",)),
    ],
)
def test_who_has_all_that_shares_a_scale_rounds_it(
    weights: WeightFormat | None, shape: dict[str, int], apart: tuple[str, ...]
) -> None:
    sizes = make_shape(**({"num_heads": 6, "num_kv_heads": 2} | shape))
    layout = ModelLayout.build(sizes, "float32", 16, 64, weights)
    assert step_operators(layout).rounded_apart == apart
