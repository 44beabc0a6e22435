"""Whole phase programs of every ISA this CPU runs, against the reference executor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from codegen import reference
from codegen.spec import Phase
from sandwich.executor.base import Batch, Executor
from sandwich.executor.verify import TOLERANCE
from sandwich.requests.want import Want
from tests.codegen.conftest import BEST, DTYPES, ISAS, Array, same_bits
from tests.sandwich.executor.conftest import LIMITS, Sequences, TinyModel, tokens

FLOAT32_TOLERANCE = 1e-5  # of the largest logit
BLOCK_ROWS = 32  # of logits that are kept, where not all are
BF16_TOLERANCE = 0.02  # root mean square of the difference over that of the logits


@dataclass(frozen=True)
class Pair:
    """A compiled program and the truth about it."""

    dtype: str
    compiled: Executor
    reference: Executor

    def check(self, batch: Batch) -> None:
        actual, expected = self.compiled.run(batch), self.reference.run(batch)
        np.testing.assert_array_equal(actual.argmax, actual.logits.argmax(axis=1))
        error = actual.logits - expected.logits
        if self.dtype == "float32":
            assert np.abs(error).max() <= FLOAT32_TOLERANCE * np.abs(expected.logits).max()
        else:
            assert size_of(error) <= BF16_TOLERANCE * size_of(expected.logits)

    def logits(self, batch: Batch) -> Array:
        return self.compiled.run(batch).logits.copy()

    def check_scores(self, batch: Batch) -> None:
        """Every row scores the token after it; also those whose logits are not kept."""
        actual, expected = self.compiled.run(batch), self.reference.run(batch)
        assert len(actual.logits) == len(expected.logits) < len(batch.logit_rows)
        found, right = (
            np.array([output.target_logprob(row) for row in range(len(batch.logit_rows))])
            for output in (actual, expected)
        )
        largest = max(map(abs, expected.peaks))
        assert np.abs(found - right).max() <= TOLERANCE[self.dtype] * largest
        kept = slice(len(batch.wants) - len(actual.logits), None)
        wants = batch.wants[kept]
        scores = actual.scores
        assert scores is not None
        totals, chosen, ranks, *_ = reference.scores(
            actual.logits, [want.target for want in wants], [0] * len(wants)
        )
        np.testing.assert_allclose(scores.totals[kept], totals, rtol=1e-5)
        assert scores.chosen[kept] == chosen.tolist()
        assert scores.ranks[kept] == ranks.tolist()


def size_of(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


# Every second target is slow: the operators have been tested on all of them, one by one.
EACH_PAIR = [
    *(
        pytest.param(
            (isa, dtype, dtype), id=f"{isa}-{dtype}", marks=[pytest.mark.slow] * ((i + j) % 2)
        )
        for i, isa in enumerate(ISAS)
        for j, dtype in enumerate(DTYPES)
    ),
    pytest.param((BEST, "bfloat16", "int8"), id=f"{BEST}-bfloat16-int8-cache"),
]


@pytest.fixture(scope="module", params=EACH_PAIR)
def pair(request: pytest.FixtureRequest, cache_dir: Path) -> Iterator[Pair]:
    isa, dtype, kv_dtype = request.param
    model = TinyModel.make(isa, dtype, kv_dtype)
    with closing(model.compiled(cache_dir)) as compiled:
        yield Pair(dtype, compiled, model.reference())


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def blocks(request: pytest.FixtureRequest, cache_dir: Path) -> Iterator[Pair]:
    """Executors that keep 32 rows of logits."""
    model = TinyModel.make(BEST, request.param)
    limits = replace(LIMITS, max_num_logits=BLOCK_ROWS)
    with closing(model.compiled(cache_dir, limits)) as compiled:
        yield Pair(request.param, compiled, model.reference(limits))


def test_both_phases_compute_what_the_reference_computes_in_one_cache(pair: Pair) -> None:
    sequences = Sequences()
    one, two, three = [5], [6, 7], [8, 9, 10]
    pair.check(sequences.batch(Phase.PREFILL, {0: tokens(37, 1), 2: one, 3: tokens(33, 3)}))
    pair.check(sequences.batch(Phase.DECODE, {3: one, 0: one, 2: one}))
    pair.check(sequences.batch(Phase.PREFILL, {2: tokens(31, 4), 1: tokens(32, 5), 0: two}))
    pair.check(sequences.batch(Phase.DECODE, {1: one}))
    pair.check(sequences.batch(Phase.PREFILL, {1: three}))
    pair.check(sequences.batch(Phase.DECODE, {0: one, 1: one, 2: one, 3: one}))


@pytest.mark.parametrize("num_rows", [31, 32, 63, 64, 65, 80])
def test_scores_need_no_more_logits_than_a_block_holds(blocks: Pair, num_rows: int) -> None:
    prompt = tokens(num_rows + 1, num_rows)
    wants = [Want(target=token, num_top=2) for token in prompt[1:]]
    batch = Sequences().batch(Phase.PREFILL, {0: prompt[:-1]}, range(num_rows), wants)
    blocks.check_scores(batch) if num_rows > BLOCK_ROWS else blocks.check(batch)


def test_only_the_wanted_rows_get_logits(pair: Pair) -> None:
    prompt = {1: tokens(9, 1), 0: tokens(35, 2)}
    every = pair.logits(Sequences().batch(Phase.PREFILL, prompt))
    for rows in ([43], [8, 43], [0, 1, 7, 8, 9, 40], []):
        some = pair.logits(Sequences().batch(Phase.PREFILL, prompt, rows))
        assert same_bits(some, every[rows])


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
