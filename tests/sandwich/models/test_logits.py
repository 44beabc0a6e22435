"""Logits of random tiny models, at every position and however they are fed, against transformers.

In float32 an executor differs from transformers by the order of its sums only: the largest
difference is held to FLOAT32_TOLERANCE of the largest logit. With bf16 weights, products and cache
each product is rounded to 8 bits: the root mean square is held to BF16_TOLERANCE of the logits'; of
models with experts, that of most positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from codegen.spec import Phase
from sandwich.engine.engine import Engine
from sandwich.requests.pooling import Pooling
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from tests.sandwich.models.conftest import read_config

if TYPE_CHECKING:
    from sandwich.executor.base import Executor
    from tests.sandwich.models.conftest import Driver, TinyModel

FLOAT32_TOLERANCE = 1e-5
BF16_TOLERANCE = 0.02
CHUNKS = [1, 7, 31, 32, 33, 64]


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= FLOAT32_TOLERANCE * np.abs(expected).max()


def assert_near(actual: np.ndarray, expected: np.ndarray, tiny: TinyModel) -> None:
    squares = np.square(actual - expected).mean(axis=1)
    # where two experts are nearly equal, a rounded router may choose the other one for a token
    error = (
        np.median(squares) if read_config(tiny.folder).switches.traits.experts else squares.mean()
    )
    assert error <= BF16_TOLERANCE**2 * np.square(expected).mean()


def test_prefill_in_one_go_agrees_with_transformers(driver: Driver, tiny: TinyModel) -> None:
    assert_close(driver.prefill(tiny.token_ids, len(tiny.token_ids)), tiny.logits)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_prefill_in_chunks_agrees_with_transformers(
    driver: Driver, tiny: TinyModel, chunk: int
) -> None:
    assert_close(driver.prefill(tiny.token_ids, chunk), tiny.logits)


def test_decode_token_by_token_agrees_with_transformers(driver: Driver, tiny: TinyModel) -> None:
    logits = [driver.decode(token_id) for token_id in tiny.token_ids]
    assert_close(np.array(logits), tiny.logits)


def test_decode_goes_on_after_prefill_across_a_block(driver: Driver, tiny: TinyModel) -> None:
    driver.prefill(tiny.token_ids[:31], 31)
    logits = [driver.decode(token_id) for token_id in tiny.token_ids[31:]]
    assert_close(np.array(logits), tiny.logits[31:])


def test_sequences_of_one_batch_do_not_see_each_other(driver: Driver, tiny: TinyModel) -> None:
    ids = tiny.token_ids
    first = driver.run(Phase.PREFILL, {2: ids[:33], 0: ids[40:41], 3: ids[8:40]})
    second = driver.run(Phase.PREFILL, {3: ids[40:45], 0: ids[41:70], 2: ids[33:34]})
    third = driver.run(Phase.DECODE, {0: ids[:1], 2: ids[34:35]})
    long, short, middle = (
        tiny.logits_of(part) for part in (ids[:35], ids[40:] + ids[:1], ids[8:45])
    )
    assert_close(np.concatenate((first[0], second[2], third[1])), long)
    assert_close(np.concatenate((first[1], second[1], third[0])), short)
    assert_close(np.concatenate((first[2], second[0])), middle)


def test_greedy_tokens_equal_those_of_transformers(driver: Driver, tiny: TinyModel) -> None:
    prompt = tiny.token_ids[:29]  # decoding crosses into the second block
    logits = driver.prefill(prompt, len(prompt))[-1]
    tokens = []
    for _ in tiny.greedy_token_ids:
        tokens.append(int(logits.argmax()))
        logits = driver.decode(tokens[-1])
    assert tokens == tiny.greedy_token_ids


@pytest.mark.parametrize("kind", Pooling)
def test_embeddings_agree_with_transformers(
    executor: Executor, tiny: TinyModel, kind: Pooling
) -> None:
    engine = Engine(executor)
    prompts = [tiny.token_ids[:1], tiny.token_ids[3:67], tiny.token_ids[:33]]
    for i, prompt in enumerate(prompts):
        request = Request(str(i), prompt, SamplingParams(max_tokens=0), pooling=kind)
        engine.add_request(request)
    found: dict[str, Any] = {}
    while engine.has_work():
        found |= {event.request_id: event.embedding for event in engine.step()}
    for i, prompt in enumerate(prompts):
        states = tiny.states_of(prompt)
        expected = states.mean(axis=0) if kind is Pooling.MEAN else states[-1]
        embedding = found[str(i)]
        assert embedding is not None
        assert_close(embedding, expected)


def test_bf16_stays_near_float32(bf16_driver: Driver, tiny: TinyModel) -> None:
    logits = bf16_driver.prefill(tiny.token_ids, len(tiny.token_ids))
    assert_near(logits, tiny.logits, tiny)


def test_bf16_prefill_in_chunks_and_decode_agree(bf16_driver: Driver, tiny: TinyModel) -> None:
    whole = bf16_driver.prefill(tiny.token_ids, len(tiny.token_ids), seq=0)
    chunked = bf16_driver.prefill(tiny.token_ids, 33, seq=1)
    decoded = np.array([bf16_driver.decode(token_id, seq=2) for token_id in tiny.token_ids])
    for other in (chunked, decoded):
        assert_near(other, whole, tiny)
