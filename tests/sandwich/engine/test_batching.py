"""A batch, spelled out number by number."""

from __future__ import annotations

from typing import Any

from codegen.spec import Phase
from sandwich.engine.batching import build_batch, wanted_rows
from sandwich.executor.base import StepKind
from sandwich.requests.request import LogprobEntry, Request
from sandwich.requests.sampling_params import SamplingParams
from sandwich.requests.want import ANY_TOKEN, ARGMAX, Want


def request(prompt: list[int], num_computed: int = 0, **params: Any) -> Request:
    made = Request("r", prompt, SamplingParams(**params))
    made.num_computed = num_computed
    return made


def test_chunks_of_two_prompts_lie_one_after_the_other() -> None:
    first = request([10, 11, 12, 13, 14, 15], num_computed=3)  # its last three tokens
    second = request([20, 21, 22])  # its first two
    batch = build_batch(Phase.PREFILL, [first, second], [3, 2])
    assert batch.phase is Phase.PREFILL
    assert batch.kind is StepKind.PREFILL
    assert batch.requests == (first, second)
    assert list(batch.starts) == [3, 0]
    assert list(batch.num_new) == [3, 2]
    assert batch.num_tokens == 5
    assert list(batch.logit_rows) == [2]
    assert list(batch.sampled) == [0]
    assert batch.position(0) == 5


def test_a_decode_batch_has_one_token_and_one_logit_row_each() -> None:
    first, second = request([1, 2, 3, 4, 5], num_computed=4), request([6])
    batch = build_batch(Phase.DECODE, [first, second], [1, 1])
    assert batch.kind is StepKind.DECODE
    assert list(batch.starts) == [4, 0]
    assert batch.num_tokens == 2
    assert list(batch.logit_rows) == list(batch.sampled) == [0, 1]
    assert [batch.position(row) for row in range(2)] == [4, 0]


def test_riders_make_a_mixed_batch() -> None:
    rider, other = request([1, 2], num_computed=1), request([3, 4, 5])
    batch = build_batch(Phase.PREFILL, [rider, other], [1, 3], num_riders=1)
    assert batch.kind is StepKind.MIXED
    assert list(batch.logit_rows) == [0, 3]


def test_a_chunk_that_ends_before_the_prompt_wants_no_logits() -> None:
    batch = build_batch(Phase.PREFILL, [request([1, 2, 3])], [2])
    assert list(batch.logit_rows) == list(batch.sampled) == []


def test_a_batch_stays_what_it_is_while_its_requests_go_on() -> None:
    one = request([1, 2, 3])
    batch = build_batch(Phase.PREFILL, [one], [3])
    one.num_computed = 3
    one.accept(4, now=0.0)
    assert list(batch.starts) == [0]
    assert batch.position(0) == 2


def test_prompt_logprobs_want_every_row_of_a_chunk() -> None:
    plain = request([1, 2])
    wanting = request([1, 2, 3, 4, 5], prompt_logprobs=0)
    batch = build_batch(Phase.PREFILL, [plain, wanting], [2, 3])
    assert list(batch.logit_rows) == [2, 3, 4, 1]  # those to choose from come last
    assert list(batch.sampled) == [1, 1, 1, 0]
    assert [batch.position(row) for row in range(4)] == [0, 1, 2, 1]
    wanting.num_computed, wanting.prompt_logprobs = 3, [LogprobEntry(0, 0.0, 1, (), ())] * 3
    batch = build_batch(Phase.PREFILL, [wanting], [2])
    assert list(batch.logit_rows) == [0, 1]  # token 3 predicts the last, token 4 is sampled from


def test_each_row_carries_what_is_wanted_of_it() -> None:
    requests = [
        request([5, 6, 7], prompt_logprobs=3, temperature=0.0),
        request([8], temperature=0.0, logprobs=2),
        request([8]),
        request([8], temperature=0.0, logit_bias={1: 2.0}, logprobs=0),
    ]
    batch = build_batch(Phase.PREFILL, requests, [3, 1, 1, 1])
    assert batch.wants == [
        Want(target=6, num_top=3),
        Want(target=7, num_top=3),
        ARGMAX,
        Want(target=ANY_TOKEN, num_top=2),
        Want(needs_logits=True),
        Want(needs_logits=True, target=ANY_TOKEN),
    ]


def test_rows_computed_before_a_preemption_are_not_wanted_again() -> None:
    wanting = request([1, 2, 3, 4, 5], prompt_logprobs=0)
    wanting.prompt_logprobs = [LogprobEntry(0, 0.0, 1, (), ())] * 2
    assert list(wanted_rows(wanting, end=1)) == []
    assert list(wanted_rows(wanting, end=3)) == [2]
    assert list(wanted_rows(wanting, end=5)) == [2, 3]
    wanting.prompt_logprobs *= 2
    assert list(wanted_rows(wanting, end=5)) == []
