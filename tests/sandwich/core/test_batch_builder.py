"""Flat arrays of a batch, spelled out number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from codegen.spec import Phase
from sandwich.batch_builder import build_batch, decode_batch, wanted_rows
from sandwich.request import LogprobEntry, Request
from sandwich.sampling_params import SamplingParams


def request(prompt: list[int], blocks: list[int], num_computed: int = 0, **params: Any) -> Request:
    made = Request("r", prompt, SamplingParams(**params))
    made.block_table.extend(np.array(blocks, np.int32))
    made.num_computed = num_computed
    return made


def test_chunks_of_two_prompts_lie_one_after_the_other() -> None:
    first = request([10, 11, 12, 13, 14, 15], [5, 3], num_computed=3)  # its last three tokens
    second = request([20, 21, 22], [7], num_computed=0)  # its first two
    batch = build_batch(Phase.PREFILL, [first, second], [3, 2], block_size=4)
    assert batch.phase is Phase.PREFILL
    assert batch.requests == (first, second)
    assert batch.token_ids.tolist() == [13, 14, 15, 20, 21]
    assert batch.positions.tolist() == [3, 4, 5, 0, 1]
    assert batch.slot_mapping.tolist() == [5 * 4 + 3, 3 * 4, 3 * 4 + 1, 7 * 4, 7 * 4 + 1]
    assert batch.query_starts.tolist() == [0, 3, 5]
    assert batch.context_lens.tolist() == [6, 2]
    assert batch.block_tables.tolist() == [[5, 3], [7, 0]]
    assert batch.logit_rows.tolist() == [2]
    assert batch.sampled == (0,)


def test_a_decode_batch_has_one_token_and_one_logit_row_each() -> None:
    first = request([1, 2, 3, 4, 5], [2, 9], num_computed=4)
    second = request([6], [4], num_computed=0)
    batch = decode_batch([first, second], block_size=4)
    assert batch.token_ids.tolist() == [5, 6]
    assert batch.positions.tolist() == [4, 0]
    assert batch.slot_mapping.tolist() == [36, 16]
    assert batch.query_starts.tolist() == [0, 1, 2]
    assert batch.context_lens.tolist() == [5, 1]
    assert batch.logit_rows.tolist() == [0, 1]
    assert batch.sampled == (0, 1)


@pytest.mark.parametrize("lengths", [[1], [4], [5, 1], [8, 9, 3]])
def test_a_decode_batch_is_the_general_one_with_one_token_each(lengths: list[int]) -> None:
    requests = [
        request(list(range(length)), [3 * i + 2, 3 * i, 3 * i + 1], num_computed=length - 1)
        for i, length in enumerate(lengths)
    ]
    found = decode_batch(requests, 4)
    expected = build_batch(Phase.DECODE, requests, [1] * len(requests), 4)
    for name in type(expected).__slots__:
        actual, wanted = getattr(found, name), getattr(expected, name)
        np.testing.assert_array_equal(actual, wanted, name)
        assert getattr(actual, "dtype", None) == getattr(wanted, "dtype", None), name


def test_block_tables_are_as_wide_as_the_longest_context_not_the_longest_table() -> None:
    long_table = request(list(range(16)), [1, 2, 3, 4])
    assert build_batch(Phase.PREFILL, [long_table], [5], 4).block_tables.tolist() == [[1, 2]]


def test_every_array_is_int32() -> None:
    batch = build_batch(Phase.PREFILL, [request([1, 2, 3], [0])], [2], 4)
    arrays = [getattr(batch, name) for name in type(batch).__slots__]
    kinds = {array.dtype for array in arrays if isinstance(array, np.ndarray)}
    assert kinds == {np.dtype(np.int32)}
    assert batch.logit_rows.shape == (0,)


def test_prompt_logprobs_want_every_row_of_a_chunk() -> None:
    plain = request([1, 2], [0])
    wanting = request([1, 2, 3, 4, 5], [1, 2], prompt_logprobs=0)
    batch = build_batch(Phase.PREFILL, [plain, wanting], [2, 3], 4)
    assert batch.logit_rows.tolist() == [1, 2, 3, 4]
    assert batch.sampled == (0, 1, 1, 1)
    wanting.num_computed, wanting.prompt_logprobs = 3, [LogprobEntry(0, 0.0, 1, (), ())] * 3
    batch = build_batch(Phase.PREFILL, [wanting], [2], 4)
    assert batch.logit_rows.tolist() == [0, 1]  # token 3 predicts the last, token 4 is sampled from


def test_rows_computed_before_a_preemption_are_not_wanted_again() -> None:
    wanting = request([1, 2, 3, 4, 5], [1, 2], prompt_logprobs=0)
    wanting.prompt_logprobs = [LogprobEntry(0, 0.0, 1, (), ())] * 2
    assert list(wanted_rows(wanting, end=1)) == []
    assert list(wanted_rows(wanting, end=3)) == [2]
    assert list(wanted_rows(wanting, end=5)) == [2, 3]
    wanting.prompt_logprobs *= 2
    assert list(wanted_rows(wanting, end=5)) == []
