"""The null executor: predictable tokens, logits that agree with them, failures on order."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.spec import Phase
from sandwich.engine.batching import build_batch
from sandwich.executor.base import Batch, ExecutorLimits
from sandwich.executor.null import NullExecutor
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams


def limits(vocab_size: int = 97, **changes: int) -> ExecutorLimits:
    return ExecutorLimits(4, 16, 4, 8, 48, vocab_size, **changes)


def batch(*prompts: list[int]) -> Batch:
    requests = [Request(str(i), prompt, SamplingParams()) for i, prompt in enumerate(prompts)]
    for index, request in enumerate(requests):
        request.block_table.ids += [2 * index, 2 * index + 1]
    return build_batch(Phase.PREFILL, requests, [len(prompt) for prompt in prompts])


def test_tokens_are_a_function_of_the_last_token_and_its_position() -> None:
    executor = NullExecutor(limits())
    output = executor.run(batch([5, 6, 7], [9, 9, 7], [7]))
    assert output.argmax[0] == output.argmax[1] == executor.continuation([5, 6, 7], 1)[0]
    assert output.argmax[2] == executor.continuation([7], 1)[0]


@pytest.mark.parametrize("vocab_size", [1, 2, 97, 128256])
def test_continuations_stay_in_the_vocabulary_and_wander(vocab_size: int) -> None:
    tokens = NullExecutor(limits(vocab_size)).continuation([0], 200)
    assert len(tokens) == 200
    assert 0 <= min(tokens) <= max(tokens) < vocab_size
    assert len(set(tokens)) >= min(vocab_size, 50)


def test_logits_have_their_argmax_where_they_say_run_after_run() -> None:
    executor = NullExecutor(limits())
    for first in range(5):
        output = executor.run(batch([first], [first + 1, 2]))
        assert output.logits.shape == (2, 97)
        assert output.logits.dtype == np.float32
        assert output.logits.argmax(axis=1).tolist() == output.argmax
        assert (np.sort(output.logits, axis=1)[:, -2] < 1.0).all()


def test_the_runs_named_raise_and_the_others_do_not() -> None:
    executor = NullExecutor(limits(), failing_runs={1})
    executor.run(batch([1]))
    with pytest.raises(RuntimeError, match="injected failure of run 1"):
        executor.run(batch([1]))
    assert executor.run(batch([1])).argmax == executor.continuation([1], 1)


def test_a_batch_may_want_no_logits() -> None:
    executor = NullExecutor(limits())
    request = Request("a", [1, 2, 3], SamplingParams())
    request.block_table.ids.append(0)
    output = executor.run(build_batch(Phase.PREFILL, [request], [2]))
    assert output.logits.shape == (0, 97)
    assert output.argmax == []


def test_nothing_runs_after_close() -> None:
    executor = NullExecutor(limits())
    executor.close()
    with pytest.raises(AssertionError, match="run after close"):
        executor.run(batch([1]))


def test_logit_rows_default_to_one_per_token_and_never_fall_below_the_sequences() -> None:
    assert limits().max_num_logits == 8
    assert ExecutorLimits(4, 16, 9, 8, 48, 97).max_num_logits == 9
    with pytest.raises(AssertionError, match="every sequence"):
        limits(max_num_logits=3)
