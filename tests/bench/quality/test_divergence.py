"""How far distributions are from each other: against float64, and through two executors."""

from pathlib import Path

import numpy as np
import pytest

from bench.quality.divergence import Divergence, divergence, kl_divergence, score
from bench.quality.windows import Window
from platforms.isa import select_isa
from tests.sandwich.executor.conftest import TinyModel, tokens


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(axis=1)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 40])
def test_the_divergence_is_that_of_float64(count: int) -> None:
    rng = np.random.default_rng(count)
    one = (rng.standard_normal((count, 501)) * 4).astype(np.float32)
    two = (one + rng.standard_normal((count, 501)) * 0.1).astype(np.float32)
    expected = kl(log_softmax(one), log_softmax(two))
    np.testing.assert_allclose(kl_divergence(one, two), expected, rtol=1e-3, atol=1e-6)
    assert not kl_divergence(one, one).any()


def test_one_sided_certainty_counts() -> None:
    sure, unsure = np.array([[50.0, 0.0]], np.float32), np.array([[0.0, 0.0]], np.float32)
    assert kl_divergence(sure, unsure) == pytest.approx(np.log(2))
    assert kl_divergence(unsure, sure) == pytest.approx(25 - np.log(2))


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return TinyModel.make(select_isa().name, "float32")


@pytest.fixture
def windows() -> list[Window]:
    ids = tokens(150, 3)
    return [Window(tuple(ids[:90])), Window(tuple(ids[89:])), Window((5, 6))]


def test_two_executors_are_compared_token_by_token(
    model: TinyModel, cache_dir: Path, windows: list[Window]
) -> None:
    compiled, reference = model.compiled(cache_dir), model.reference()
    try:
        seen: list[int] = []
        found = divergence(reference, compiled, windows, seen.append)
    finally:
        compiled.close()
    count = sum(window.num_predicted for window in windows)
    assert sum(seen) == len(found.nats) == len(found.kl) == len(found.is_same_top) == count
    np.testing.assert_allclose(found.nats, found.reference_nats, atol=1e-4)
    assert np.abs(found.kl).max() < 1e-6
    assert found.agreement > 0.98
    assert found.perplexity_ratio == pytest.approx(1, abs=1e-4)


def test_a_window_is_scored_the_same_in_chunks_of_any_size(
    model: TinyModel, windows: list[Window]
) -> None:
    reference = model.reference()
    [whole] = score(reference, windows[1], 60)
    nats = [-whole.target_logprob(row) for row in range(60)]
    for chunk in (1, 31, 59):
        parts = [
            -output.target_logprob(row)
            for output in score(reference, windows[1], chunk)
            for row in range(len(output.argmax))
        ]
        np.testing.assert_allclose(parts, nats, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("skip", [1, 30, 59])
def test_what_is_not_skipped_is_scored_as_in_the_whole_window(
    model: TinyModel, windows: list[Window], skip: int
) -> None:
    reference = model.reference()
    [whole] = score(reference, windows[1], 60)
    nats = [-whole.target_logprob(row) for row in range(skip, 60)]
    rest = Window(windows[1].token_ids, skip)
    found = divergence(reference, reference, [rest])
    np.testing.assert_allclose(found.nats, nats, rtol=1e-4, atol=1e-5)
    assert found.agreement == 1


def test_the_error_of_a_ratio_is_that_of_paired_differences() -> None:
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    other = reference + np.array([0.1, 0.3, 0.1, 0.3])
    found = Divergence(reference, other, np.zeros(4), np.array([True, True, False, True]))
    assert found.perplexity_ratio == pytest.approx(np.exp(0.2))
    assert found.ratio_error == pytest.approx(np.exp(0.2) * np.std([0.1, 0.3] * 2, ddof=1) / 2)
    assert found.agreement == 0.75
