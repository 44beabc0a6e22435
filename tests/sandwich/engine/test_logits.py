"""One row of logits: edits against the formulas, top ids and log probs against a full sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from codegen import reference
from sandwich.engine.logits import (
    NonFiniteLogitsError,
    choice_entry,
    edit_logits,
    target_entry,
    top_ids,
)
from sandwich.executor.base import Scores, StepOutput
from sandwich.requests.request import LogprobEntry, Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import ANY_TOKEN, Want

Row = npt.NDArray[np.float32]


def request(
    prompt: list[int], output: list[int], eos: tuple[int, ...] = (), **params: Any
) -> Request:
    made = Request("r", prompt, SamplingParams(**params), eos_token_ids=eos)
    for token_id in output:
        made.accept(token_id, now=0.0)
    return made


def edited(row: list[float], made: Request) -> list[float]:
    logits = np.array(row, np.float32)
    edit_logits(logits, made)
    return logits.tolist()


def test_repetition_penalty_pushes_prompt_and_output_tokens_down_once() -> None:
    made = request([0, 1, 1], [1, 2, 2, 2], repetition_penalty=2.0)
    assert edited([4.0, -4.0, 0.0, 4.0], made) == [2.0, -8.0, 0.0, 4.0]


def test_a_repetition_penalty_below_one_pulls_them_up() -> None:
    made = request([0, 1], [], repetition_penalty=0.5)
    assert edited([4.0, -4.0, 1.0], made) == [8.0, -2.0, 1.0]


def test_presence_counts_once_and_only_in_the_output() -> None:
    made = request([0, 0], [1, 1, 2], presence_penalty=0.5)
    assert edited([1.0, 1.0, 1.0, 1.0], made) == [1.0, 0.5, 0.5, 1.0]


def test_frequency_counts_every_time_and_only_in_the_output() -> None:
    made = request([0, 0], [1, 1, 2], frequency_penalty=0.5)
    assert edited([1.0, 1.0, 1.0, 1.0], made) == [1.0, 0.0, 0.5, 1.0]


def test_all_edits_come_in_their_order() -> None:
    made = request(
        [0], [1, 1], repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5,
        logit_bias={0: 1.0, 3: -2.0}, min_tokens=3, stop_token_ids=[2],
    )  # fmt: skip
    assert edited([4.0, 4.0, 9.0, 1.0], made) == [3.0, 2.0 - 0.25 - 1.0, -np.inf, -1.0]


def test_nothing_is_penalised_before_the_first_output() -> None:
    made = request([0], [], presence_penalty=1.0, frequency_penalty=1.0)
    assert edited([1.0, 2.0], made) == [1.0, 2.0]


@pytest.mark.parametrize(("num_had", "is_banned"), [(0, True), (1, True), (2, False), (9, False)])
def test_min_tokens_bans_eos_and_stop_ids_until_there_are_enough(
    num_had: int, is_banned: bool
) -> None:
    made = request([5], [5] * num_had, eos=(0, 1), min_tokens=2, stop_token_ids=[2])
    expected = [-np.inf] * 3 if is_banned else [1.0] * 3
    assert edited([1.0] * 6, made)[:3] == expected


def test_min_tokens_leaves_eos_alone_if_eos_is_ignored() -> None:
    made = request([1], [], eos=(0,), min_tokens=2, ignore_eos=True)
    assert edited([1.0, 1.0], made) == [1.0, 1.0]


def test_a_bias_cannot_lift_a_ban() -> None:
    made = request([1], [], eos=(0,), min_tokens=1, logit_bias={0: 100.0})
    assert edited([1.0, 1.0], made)[0] == -np.inf


def test_banning_the_whole_vocabulary_is_an_error() -> None:
    with pytest.raises(NonFiniteLogitsError, match="bans every token"):
        edited([1.0, 1.0], request([1], [], eos=(0, 1), min_tokens=1))


def slow_top_ids(row: Row, k: int) -> list[int]:
    order: list[int] = np.lexsort((np.arange(len(row)), -row)).tolist()
    return order[:k]


@pytest.mark.parametrize("vocab_size", [1, 2, 100, 4096, 8191, 8192, 8193, 12345, 32000])
@pytest.mark.parametrize("k", [0, 1, 2, 50, 4095, 4096, 4097, 40000])
@pytest.mark.parametrize("num_levels", [1, 5, 10**6])
def test_top_ids_are_those_of_a_full_sort(vocab_size: int, k: int, num_levels: int) -> None:
    rng = np.random.default_rng(vocab_size + k)
    row = rng.integers(0, num_levels, vocab_size).astype(np.float32)  # few levels: many ties
    assert top_ids(row, k).tolist() == slow_top_ids(row, k)


def test_top_ids_find_the_largest_in_the_ragged_end_of_a_row() -> None:
    row = np.zeros(8192 + 7, np.float32)
    row[-1], row[-2], row[3] = 3.0, 2.0, 1.0
    assert top_ids(row, 4).tolist() == [8198, 8197, 3, 0]


def test_top_ids_take_banned_tokens_last() -> None:
    row = np.array([-np.inf, 1.0, -np.inf, 2.0], np.float32)
    assert top_ids(row, 3).tolist() == [3, 1, 0]


def scored(row: Row, want: Want) -> StepOutput:
    """What a step says about one row of logits."""
    argmax = reference.argmax(row[None]).tolist()
    found: Any = reference.scores(row[None], [want.target], [want.num_top])
    scores = Scores(*(values.tolist() for values in found[:3]), *found[3:])
    return StepOutput(row[None], argmax, [row.item(argmax[0])], scores)


def logprob_entry(row: Row, token_id: int, num_top: int) -> LogprobEntry:
    """Of a token that was given; the same must come out if it was chosen."""
    given, free = Want(target=token_id, num_top=num_top), Want(True, ANY_TOKEN, num_top)
    entry = target_entry(scored(row, given), 0, given)
    assert choice_entry(scored(row, free), 0, free, token_id) == entry
    return entry


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab_size", [1, 30, 9000])
def test_logprobs_are_those_of_the_softmax(vocab_size: int, num_top: int) -> None:
    row = (np.random.default_rng(1).standard_normal(vocab_size) * 4).astype(np.float32)
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    token_id = vocab_size // 2
    entry = logprob_entry(row, token_id, num_top)
    assert entry.token_id == token_id
    assert entry.logprob == pytest.approx(exact[token_id], abs=1e-6)
    assert entry.rank == slow_top_ids(row, vocab_size).index(token_id) + 1
    assert list(entry.top_ids) == slow_top_ids(row, num_top)
    assert entry.top_logprobs == pytest.approx(exact[list(entry.top_ids)].tolist(), abs=1e-6)


def test_ranks_of_equal_logits_go_by_id() -> None:
    row = np.array([1.0, 2.0, 1.0, 1.0], np.float32)
    assert [logprob_entry(row, token_id, 0).rank for token_id in range(4)] == [2, 1, 3, 4]


def test_huge_logits_do_not_overflow() -> None:
    row = np.array([1e38, 1e38, -1e38], np.float32)
    assert logprob_entry(row, 0, 1).logprob == pytest.approx(np.log(0.5))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logprobs_of_a_broken_row_are_refused(bad: float) -> None:
    row = np.array([1.0, bad, 2.0], np.float32)
    with np.errstate(invalid="ignore"), pytest.raises(NonFiniteLogitsError, match="--dtype float"):
        logprob_entry(row, 0, 1)
