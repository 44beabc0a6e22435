"""The driver times the steps it says it times, on the null executor."""

import itertools

import pytest

from bench.driver import BenchmarkError, EngineDriver, decode_headroom
from sandwich.engine.engine import Engine
from sandwich.executor.base import ExecutorLimits
from sandwich.executor.null import NullExecutor

CHUNK = 16


def make_engine(num_blocks: int = 64, failing_runs: tuple[int, ...] = ()) -> Engine:
    limits = ExecutorLimits(
        block_size=8,
        num_blocks=num_blocks,
        max_num_seqs=4,
        max_num_batched_tokens=CHUNK,
        max_model_len=128,
        vocab_size=50,
    )
    return Engine(NullExecutor(limits, failing_runs))


@pytest.mark.parametrize(
    ("num_tokens", "num_steps"), [(1, 1), (CHUNK, 1), (CHUNK + 1, 2), (3 * CHUNK, 3)]
)
def test_a_prompt_is_timed_to_its_first_token(num_tokens: int, num_steps: int) -> None:
    engine = make_engine()
    steps = EngineDriver(engine, seed=0).prefill(num_tokens)
    assert len(steps) == num_steps
    assert all(0 <= step.native_seconds <= step.seconds for step in steps)
    assert not engine.has_work()


@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("context", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_decode_steps_add_one_token_to_every_sequence(batch: int, context: int) -> None:
    engine = make_engine()
    seen: list[int] = []
    steps = list(EngineDriver(engine, seed=0).decode(batch, context, 5, seen.append))
    assert seen == [0, 1, 2, 3, 4]
    for earlier, later in itertools.pairwise(steps):
        assert [c + 1 for c in earlier.contexts] == list(later.contexts)
    first = steps[0].contexts
    assert len(first) == batch
    assert context + 1 == min(first)
    assert max(first) <= context + decode_headroom(batch, context, CHUNK)
    assert not engine.has_work()
    engine.scheduler.check_integrity()


def test_a_failed_step_fails_the_benchmark() -> None:
    with pytest.raises(BenchmarkError, match="injected"):
        EngineDriver(make_engine(failing_runs=(0,)), seed=0).prefill(4)


def test_a_cache_too_small_for_the_batch_is_noticed() -> None:
    driver = EngineDriver(make_engine(num_blocks=9), seed=0)
    with pytest.raises(BenchmarkError, match="kv-cache-size"):
        list(driver.decode(4, 16, 40, lambda i: None))
