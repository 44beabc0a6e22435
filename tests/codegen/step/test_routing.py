"""Experts: who is chosen, how rows are sorted, and steps in which some have no rows or all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from codegen.reference import Routes
from codegen.spec import Experts, Phase, Traits
from codegen.step.program import run
from codegen.step.routing import choose_experts, sort_rows
from codegen.step.step import Step
from sandwich.executor.base import Executor
from tests.codegen.conftest import (
    BEST,
    ISAS,
    Array,
    Compile,
    Kernel,
    make_spec,
    normal,
    same_bits,
)
from tests.sandwich.executor.conftest import Sequences, TinyModel, tokens

NUM_TOKENS = 37
EXPERTS = {
    "one-of-one": Experts(1, 1, 8),
    "all": Experts(5, 5, 8, is_normalised=False),
    "some-of-less-than-a-vector": Experts(5, 2, 8),
    "a-vector-and-one": Experts(17, 3, 8, is_normalised=False),
    "of-many": Experts(64, 8, 8),
}


def kernel_of(compile_body: Compile, isa: str, experts: Experts, num_cores: int = 3) -> Kernel:
    traits = Traits(experts=experts)
    spec = make_spec(isa, "float32", num_cores=num_cores, traits=traits)

    def body(step: Step) -> None:
        run(step, "route", lambda core: choose_experts(step, core, "router_logits"))
        run(step, "route", lambda core: sort_rows(step, core))

    return compile_body(spec, body)


def check(kernel: Kernel, logits: Array, experts: Experts) -> None:
    """All that a step knows of its experts, beside the truth."""
    count = len(logits)
    kernel["router_logits"][:count, : experts.count] = logits
    kernel(num_tokens=count)
    routes = Routes.of(logits, experts)
    ids, rows = kernel["expert_ids"][:count], kernel["expert_rows"][:count]
    np.testing.assert_array_equal(ids, routes.ids)
    np.testing.assert_allclose(kernel["expert_shares"][:count], routes.shares, rtol=1e-5)
    num_rows = count * experts.per_token
    expected = routes.gather(np.arange(count, dtype=np.float32))
    np.testing.assert_array_equal(kernel["row_tokens"][:num_rows], expected)
    assert sorted(rows.ravel()) == list(range(num_rows))
    chosen, counts = np.unique(ids, return_counts=True)
    assert kernel["num_chosen"][0] == len(chosen)
    np.testing.assert_array_equal(kernel["chosen_experts"][: len(chosen)], chosen)
    starts = kernel["expert_starts"]
    np.testing.assert_array_equal(np.diff(starts)[chosen], counts)
    for token, place in np.ndindex(*ids.shape):
        expert = ids[token, place]
        assert starts[expert] <= rows[token, place] < starts[expert + 1]
        assert kernel["row_tokens"][rows[token, place]] == token


@pytest.mark.parametrize("experts", EXPERTS.values(), ids=EXPERTS)
@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_logits_choose_and_the_lower_number_among_equals(
    compile_body: Compile, isa: str, experts: Experts
) -> None:
    kernel = kernel_of(compile_body, isa, experts)
    for num_tokens in (1, 2, NUM_TOKENS):
        check(kernel, normal(num_tokens, experts.count, seed=num_tokens), experts)
    logits = normal(NUM_TOKENS, experts.count)
    check(kernel, np.round(logits), experts)  # ties
    check(kernel, np.zeros_like(logits), experts)
    logits[:, -1] = 9  # the last expert has them all
    check(kernel, logits, experts)


def test_what_is_no_number_still_chooses_different_experts(compile_body: Compile) -> None:
    experts = EXPERTS["a-vector-and-one"]
    kernel = kernel_of(compile_body, BEST, experts)
    logits = normal(NUM_TOKENS, experts.count)
    logits[3] = np.nan
    logits[5, [0, 2, 4, 6]] = np.nan
    logits[7, 16] = np.nan
    logits[9] = np.inf
    logits[11] = -np.inf
    kernel["router_logits"][:NUM_TOKENS, : experts.count] = logits
    kernel(num_tokens=NUM_TOKENS)
    ids = kernel["expert_ids"][:NUM_TOKENS]
    assert (np.diff(ids, axis=1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < experts.count
    others = [row for row in range(NUM_TOKENS) if np.isfinite(logits[row]).all()]
    np.testing.assert_array_equal(ids[others], Routes.of(logits[others], experts).ids)


FEW = Experts(count=6, per_token=2, size=39)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> TinyModel:
    return TinyModel.make(BEST, request.param, traits=Traits(experts=FEW))


@pytest.fixture(scope="module")
def compiled(model: TinyModel, cache_dir: Path) -> Iterator[Executor]:
    with closing(model.compiled(cache_dir)) as made:
        yield made


def test_steps_in_which_two_experts_have_all_rows(model: TinyModel, compiled: Executor) -> None:
    router = model.weights.tensors["router"]
    kept = router.copy()
    router[:] = 0  # all logits are equal
    try:
        batch = Sequences().batch(Phase.PREFILL, {0: tokens(70, 1)})
        actual, expected = compiled.run(batch).logits, model.reference().run(batch).logits
    finally:
        router[:] = kept
    bound = 1e-5 if model.kv.dtype == "float32" else 0.05
    assert np.abs(actual - expected).max() <= bound * np.abs(expected).max()


def test_logits_are_the_same_to_the_last_bit_whoever_is_beside_a_token(
    model: TinyModel, compiled: Executor
) -> None:
    prompt = tokens(40, 1)

    def logits(sequences: Sequences, phase: Phase, chunks: dict[int, list[int]]) -> Array:
        return compiled.run(sequences.batch(phase, chunks)).logits.copy()

    whole = logits(Sequences(), Phase.PREFILL, {0: prompt})
    sequences = Sequences()
    first = logits(sequences, Phase.PREFILL, {1: tokens(5, 2), 2: prompt[:33]})[5:]
    rest = [
        logits(sequences, Phase.DECODE, {2: [token], 1: [index]})[:1]
        for index, token in enumerate(prompt[33:])
    ]
    assert same_bits(np.concatenate((first, *rest)), whole)
