"""Scores of logits on every ISA this CPU runs, against NumPy; ties and edges of vocabularies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codegen import reference
from codegen.spec import ANY_TOKEN, MAX_TOP, NOT_SCORED
from codegen.step.program import run
from codegen.step.scores import score_share, scores_of_shares
from codegen.step.step import LogitBlock, Step
from tests.codegen.conftest import (
    BEST,
    ISAS,
    Array,
    Compile,
    Kernel,
    is_poison,
    make_spec,
    normal,
)

FIRST_ROW = 3  # of the block, in its step
RESULTS = ("totals", "chosen", "ranks", "top_ids", "top_logits")
SUM_TOLERANCE = 4e-6  # of exponentials that are off by 2e-7 each, and their sum in float32


def scores_kernel(compile_body: Compile, isa: str, vocab: int, num_cores: int) -> Kernel:
    def body(step: Step) -> None:
        rows = LogitBlock(FIRST_ROW, step.num_logits)
        run(step, "scores", lambda core: score_share(step, core, rows))
        run(step, "scores", lambda core: scores_of_shares(step, core, rows))

    spec = make_spec(isa, "float32", num_cores=num_cores, vocab_size=vocab)
    return compile_body(spec, body)


def scored(
    kernel: Kernel, logits: Array, targets: list[int], num_tops: list[int]
) -> dict[str, Array]:
    """What the kernel finds in rows of logits; it must leave all others alone."""
    kernel.poison(*RESULTS)
    count, vocab = logits.shape
    rows = slice(FIRST_ROW, FIRST_ROW + count)
    kernel["logits"][:count, :vocab] = logits
    kernel["logits"][:, vocab:] = np.inf  # padding has no weight and no rank
    kernel["peaks"][rows] = logits.max(axis=1)
    kernel["targets"][rows], kernel["num_tops"][rows] = targets, num_tops
    kernel(num_logits=count, num_scored=count)
    for name in RESULTS:
        assert is_poison(kernel[name][:FIRST_ROW])
        assert is_poison(kernel[name][FIRST_ROW + count :])
    return {name: kernel[name][rows] for name in RESULTS}


def check(found: dict[str, Array], logits: Array, targets: list[int], num_tops: list[int]) -> None:
    expected = dict(zip(RESULTS, reference.scores(logits, targets, num_tops), strict=True))
    np.testing.assert_allclose(found["totals"], expected["totals"], rtol=SUM_TOLERANCE)
    for name in ("chosen", "ranks"):
        np.testing.assert_array_equal(found[name], expected[name])
    for row, num_top in enumerate(num_tops):
        best = slice(min(num_top, logits.shape[1]))
        for name in ("top_ids", "top_logits"):
            np.testing.assert_array_equal(found[name][row, best], expected[name][row, best])


def cases(vocab: int) -> Array:
    """Rows of all kinds: spread, flat, with many ties, with one finite logit, ascending."""
    rng = np.random.default_rng(vocab)
    one = np.full((1, vocab), -np.inf)
    one[0, vocab // 2] = 1.0
    rows = [
        rng.standard_normal((6, vocab)) * 4,
        np.zeros((1, vocab)),
        np.round(rng.standard_normal((6, vocab)) * 2),
        one,
        np.arange(vocab)[None] * 1e-2,
        rng.standard_normal((1, vocab)) * 30,
        np.where(rng.random((1, vocab)) < 0.5, -np.inf, 0.0),
    ]
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize("num_cores", [1, 3])
@pytest.mark.parametrize("vocab", [3, 101, 1031])
@pytest.mark.parametrize("isa", ISAS)
def test_scores_are_those_of_numpy(
    compile_body: Compile, isa: str, vocab: int, num_cores: int
) -> None:
    kernel, logits = scores_kernel(compile_body, isa, vocab, num_cores), cases(vocab)
    rng = np.random.default_rng(1)
    for num_top in (0, 1, 5, MAX_TOP):
        targets = rng.integers(0, vocab, len(logits)).tolist()
        num_tops = [num_top] * len(logits)
        check(scored(kernel, logits, targets, num_tops), logits, targets, num_tops)


@pytest.fixture(scope="module")
def kernel(compile_body: Compile) -> Kernel:
    return scores_kernel(compile_body, BEST, 101, 3)


def test_every_token_has_its_rank_also_among_equals(kernel: Kernel) -> None:
    row = np.round(normal(1, 101) * 2).astype(np.float32)
    logits, targets = np.repeat(row, 101, axis=0), list(range(101))
    found = scored(kernel, logits, targets, [0] * 101)
    assert sorted(found["ranks"].tolist()) == list(range(1, 102))
    order = np.argsort(-row[0], kind="stable")
    np.testing.assert_array_equal(found["ranks"][order], np.arange(1, 102))


def test_log_probabilities_are_those_of_a_log_softmax_in_float64(kernel: Kernel) -> None:
    logits = normal(60, 101) * 5
    targets = (np.arange(60) % 101).tolist()
    found = scored(kernel, logits, targets, [0] * 60)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    actual = found["chosen"] - logits.max(axis=1) - np.log(found["totals"])
    np.testing.assert_allclose(actual, exact[np.arange(60), targets], atol=4e-6)


def test_rows_that_want_no_score_are_passed_over(kernel: Kernel) -> None:
    logits = normal(3, 101)
    targets = [NOT_SCORED, ANY_TOKEN, 7]
    found = scored(kernel, logits, targets, [20, 2, 3])
    assert all(is_poison(values[0]) for values in found.values())
    check({name: values[1:] for name, values in found.items()}, logits[1:], targets[1:], [2, 3])


@pytest.mark.parametrize("at", [0, 50, 100])
def test_what_is_no_number_leaves_no_total(kernel: Kernel, at: int) -> None:
    logits: Any = normal(2, 101)
    logits[0, at] = np.nan
    peaks = np.where(np.isnan(logits), -np.inf, logits).max(axis=1)
    kernel["logits"][:2, :101] = logits
    rows = slice(FIRST_ROW, FIRST_ROW + 2)
    kernel["peaks"][rows], kernel["targets"][rows], kernel["num_tops"][rows] = peaks, 5, 3
    kernel(num_logits=2, num_scored=2)
    assert np.isnan(kernel["totals"][rows]).tolist() == [True, False]
