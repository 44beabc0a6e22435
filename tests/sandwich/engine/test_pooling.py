"""Embeddings in the engine: means and last states, in chunks, cached, preempted, among others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from codegen.spec import Phase
from sandwich.engine.batching import build_batch
from sandwich.executor.base import StepOutput
from sandwich.requests.pooling import Pooling
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., Driver]
NOTHING = SamplingParams(max_tokens=0)


def add(driver: Driver, prompt: Sequence[int], kind: Pooling) -> str:
    name = f"e{len(driver.requests)}"
    request = Request(name, prompt, NOTHING, pooling=kind)
    driver.engine.add_request(request)
    driver.requests[name] = request
    return name


def expected(prompt: Sequence[int], kind: Pooling) -> np.ndarray:
    """From the null executor's states: waves over the columns."""
    ids, positions = np.array(prompt)[:, None], np.arange(len(prompt))[:, None]
    states = np.sin((ids + 1) * np.arange(1, 17) + positions).astype(np.float32)
    return states.mean(axis=0) if kind is Pooling.MEAN else states[-1]


def check(driver: Driver, name: str, prompt: Sequence[int], kind: Pooling) -> None:
    end = driver.end(name)
    assert (end.finish_reason, end.token_ids) == ("stop", ())
    assert end.embedding is not None
    np.testing.assert_allclose(end.embedding, expected(prompt, kind), atol=1e-6)


@pytest.mark.parametrize("kind", Pooling)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 23])
def test_a_prompt_in_chunks_gives_what_it_gives_at_once(
    drive: Drive, kind: Pooling, length: int
) -> None:
    driver = drive()
    prompt = list(range(3, 3 + length))
    name = add(driver, prompt, kind)
    driver.run()
    check(driver, name, prompt, kind)
    assert all(not batch.logit_rows for batch in driver.executor.batches)
    assert driver.engine.stats.num_prompt_tokens == length


@pytest.mark.parametrize("kind", Pooling)
def test_others_decode_meanwhile(drive: Drive, kind: Pooling) -> None:
    driver = drive()
    alone = drive()
    talks = [each.add(5, max_tokens=9) for each in (driver, alone)]
    prompts = [list(range(2, 22)), [50, 51]]
    names = [add(driver, prompt, kind) for prompt in prompts]
    driver.run()
    alone.run()
    assert driver.tokens(talks[0]) == alone.tokens(talks[1])
    for name, prompt in zip(names, prompts, strict=True):
        check(driver, name, prompt, kind)


def test_a_mean_computes_the_whole_prompt_and_a_last_state_what_is_not_cached(
    drive: Drive,
) -> None:
    driver = drive(shares_prefixes=True)
    prompt = list(range(1, 21))
    driver.add(prompt)
    driver.run()
    for kind, num_cached in ((Pooling.MEAN, 0), (Pooling.LAST, 19)):
        name = add(driver, prompt, kind)
        driver.run()
        check(driver, name, prompt, kind)
        assert driver.timings(name).num_cached_tokens == num_cached


def test_a_preempted_prompt_goes_on_where_its_states_end(drive: Drive) -> None:
    driver = drive(num_blocks=8)
    prompt = list(range(1, 25))
    name = add(driver, prompt, Pooling.MEAN)
    driver.step()
    driver.add(9, priority=-1)
    driver.run()
    assert driver.timings(name).num_preemptions == 1
    check(driver, name, prompt, Pooling.MEAN)


def test_a_state_that_is_no_number_ends_its_request_alone(drive: Drive) -> None:
    driver = drive()
    run = driver.executor.run

    def spoil(batch: object) -> StepOutput:
        output = run(batch)  # type: ignore[arg-type]
        assert output.states is not None
        output.states[0] = np.nan
        return output

    driver.executor.run = spoil  # type: ignore[method-assign]
    names = [add(driver, [5, 6], Pooling.MEAN), add(driver, [7, 8], Pooling.MEAN)]
    driver.run()
    first, second = (driver.end(name) for name in names)
    assert (first.finish_reason, first.embedding) == ("error", None)
    assert "not a number" in str(first.error)
    check(driver, second.request_id, [7, 8], Pooling.MEAN)


def test_a_batch_names_the_rows_of_each() -> None:
    requests = [
        Request("a", [1, 2, 3], NOTHING, pooling=Pooling.MEAN),
        Request("b", [1, 2], NOTHING),
        Request("c", [1, 2, 3], NOTHING, pooling=Pooling.LAST),
    ]
    batch = build_batch(Phase.PREFILL, requests, [3, 2, 3])
    assert batch.pooled == [(0, range(3)), (2, range(7, 8))]
    assert batch.state_rows == [0, 1, 2, 7]
    assert batch.logit_rows == [4]
