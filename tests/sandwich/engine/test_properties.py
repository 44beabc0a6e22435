"""Random lives of many requests on tiny caches: one end each, no block lost, the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.spec import Phase
from schedules.mixed.plan import MixedMode, MixedPlan

if TYPE_CHECKING:
    from sandwich.executor.base import Batch
    from tests.sandwich.engine.conftest import Driver

Drive = Callable[..., "Driver"]

MAX_MODEL_LEN = 40
VOCAB_SIZE = 23

limits = st.fixed_dictionaries(
    {
        "block_size": st.sampled_from([1, 2, 4, 8]),
        "num_blocks": st.integers(2, 16),
        "max_num_seqs": st.integers(1, 5),
        "max_num_batched_tokens": st.integers(1, 16),
        "max_num_logits": st.integers(5, 8),
    }
)
greedy: st.SearchStrategy[dict[str, Any]] = st.just({"temperature": 0.0})
sampled = st.fixed_dictionaries(
    {"temperature": st.just(30.0), "seed": st.integers(0, 2**64 - 1)},
    optional={
        "top_k": st.integers(1, VOCAB_SIZE),
        "top_p": st.floats(0.1, 1.0),
        "repetition_penalty": st.just(1.5),
        "frequency_penalty": st.just(0.5),
    },
)
ends = st.fixed_dictionaries(
    {"max_tokens": st.none() | st.integers(0, 30)},
    optional={
        "eos": st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2),
        "stop_token_ids": st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=2),
        "ignore_eos": st.booleans(),
        "logprobs": st.integers(0, 3),
        "prompt_logprobs": st.integers(0, 3),
    },
)
tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30)
# Many prompts begin alike and part somewhere.
prompts = st.one_of(
    tokens,
    st.builds(
        lambda kind, length, end: (list(range(kind, kind + length)) + end)[:30],
        st.sampled_from([0, 0, 5]),
        st.integers(0, VOCAB_SIZE - 6),
        tokens,
    ),
)
params = st.builds(
    lambda how, end, salt: how | end | {"salt": salt},
    st.one_of(greedy, sampled),
    ends,
    st.sampled_from(["", "", "", "salt"]),
)
requests = st.tuples(prompts, params)
# A request comes, one that came goes on with more tokens, is aborted, or so many steps pass.
happenings = st.lists(
    st.one_of(
        requests,
        requests,
        requests,
        st.tuples(st.just("turn"), st.tuples(st.integers(0, 10), tokens, params)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("steps"), st.integers(1, 12)),
    ),
    min_size=3,
    max_size=30,
)


chunks = st.integers(0, 12)
mixed_plans = st.one_of(
    st.builds(MixedPlan, st.sampled_from([MixedMode.TURNS, MixedMode.RIDE]), chunks),
    st.builds(MixedPlan, st.just(MixedMode.CORUN), chunks, st.just((0,)), st.just((1,))),
)
patiences = st.integers(0, 5)  # runs beside a batch in flight until it is done
stored = st.sampled_from([0, 1, 6])  # blocks of a second tier of the cache


def alone(drive: Drive, capacity: int, prompt: list[int], params: dict[str, Any]) -> list[int]:
    """The tokens of a request that has an engine to itself, with room for `capacity` tokens."""
    driver = drive(
        vocab_size=VOCAB_SIZE, max_model_len=capacity, num_blocks=64, max_num_batched_tokens=64
    )
    name = driver.add(prompt, **params)
    return driver.run().tokens(name)


def play(driver: Driver, script: list[tuple[Any, Any]]) -> dict[str, tuple[list[int], Any]]:
    """Let it all happen; the requests that came, with their prompts and parameters."""
    added: dict[str, tuple[list[int], dict[str, Any]]] = {}
    capacity = driver.engine.scheduler.max_tokens_per_request
    for what, detail in script:
        if what == "steps":
            for _ in range(detail):
                driver.step()
        elif what == "abort":
            driver.abort(f"r{detail}")
        elif what == "turn":
            number, more, how = detail
            if f"r{number}" in driver.requests:
                before = driver.requests[f"r{number}"]
                prompt = [*before.token_ids[: before.num_tokens].tolist(), *more][: capacity - 1]
                added[driver.add(prompt, **how)] = (prompt, how)
        elif len(what) < capacity:
            added[driver.add(what, **detail)] = (what, detail)
    driver.run()
    return added


@settings(max_examples=120)
@given(
    sizes=limits,
    script=happenings,
    mixed=mixed_plans,
    patience=patiences,
    shares=st.booleans(),
    num_stored=stored,
)
def test_tokens_and_ends_are_those_of_a_request_alone(
    drive: Drive,
    sizes: dict[str, int],
    script: list[tuple[Any, Any]],
    mixed: MixedPlan,
    patience: int,
    shares: bool,
    num_stored: int,
) -> None:
    lengths = {"vocab_size": VOCAB_SIZE, "max_model_len": MAX_MODEL_LEN, "num_stored": num_stored}
    driver = drive((), mixed, shares, **lengths, **sizes)
    driver.executor.patience = patience
    capacity = driver.engine.scheduler.max_tokens_per_request
    added = play(driver, script)
    for name, (prompt, params) in added.items():
        expected = alone(drive, capacity, prompt, params)
        tokens = driver.tokens(name)
        assert tokens == expected[: len(tokens)]
        assert driver.end(name).finish_reason == "abort" or tokens == expected
        entries = driver.events[name][0].prompt_logprobs
        if "prompt_logprobs" in params and driver.end(name).finish_reason != "abort":
            assert entries is not None
            assert [entry.token_id for entry in entries if entry] == prompt[1:]


@settings(max_examples=60)
@given(
    sizes=limits,
    script=happenings,
    failing_runs=st.sets(st.integers(0, 40), min_size=1, max_size=6),
    poisoned=st.sets(st.integers(0, 10), max_size=2),
    mixed=mixed_plans,
    patience=patiences,
    shares=st.booleans(),
    num_stored=stored,
)
def test_failures_end_requests_but_lose_nothing(
    drive: Drive,
    sizes: dict[str, int],
    script: list[tuple[Any, Any]],
    failing_runs: set[int],
    poisoned: set[int],
    mixed: MixedPlan,
    patience: int,
    shares: bool,
    num_stored: int,
) -> None:
    lengths = {"vocab_size": VOCAB_SIZE, "max_model_len": MAX_MODEL_LEN, "num_stored": num_stored}
    driver = drive(failing_runs, mixed, shares, **lengths, **sizes)
    driver.executor.patience = patience
    driver.executor.poisoned = {f"r{number}" for number in poisoned}
    play(driver, script)
    reasons = [driver.end(name).finish_reason for name in driver.requests]
    assert set(reasons) <= {"stop", "length", "abort", "error"}
    for reason, count in driver.engine.stats.num_finished.items():
        assert reasons.count(reason) == count
    for name, request in driver.requests.items():
        assert driver.tokens(name) == request.output_token_ids.tolist()
        assert (driver.end(name).error is not None) == (driver.end(name).finish_reason == "error")


@given(
    prompt_lens=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    chunk=st.integers(1, 20),
    block_size=st.sampled_from([1, 4, 8]),
)
def test_chunks_of_a_prompt_are_exact_whatever_the_limits(
    drive: Drive, prompt_lens: list[int], chunk: int, block_size: int
) -> None:
    driver = drive(
        block_size=block_size, num_blocks=512, max_model_len=64, max_num_seqs=8,
        max_num_batched_tokens=chunk,
    )  # fmt: skip
    for length in prompt_lens:
        driver.add(length, max_tokens=1)
    driver.run()
    totals = [sum(lengths) for _, lengths in driver.chunks()]
    assert totals[:-1] == [chunk] * (len(totals) - 1)
    assert sum(totals) == sum(prompt_lens)


@given(
    num_blocks=st.integers(3, 8),
    requests=st.lists(st.tuples(prompts, st.integers(1, 30)), min_size=2, max_size=8),
    mixed=mixed_plans,
    patience=patiences,
    shares=st.booleans(),
)
def test_a_starved_cache_preempts_yet_everyone_finishes(
    drive: Drive,
    num_blocks: int,
    requests: list[tuple[list[int], int]],
    mixed: MixedPlan,
    patience: int,
    shares: bool,
) -> None:
    driver = drive(
        (), mixed, shares, block_size=2, num_blocks=num_blocks, vocab_size=VOCAB_SIZE,
        max_num_seqs=8, max_num_batched_tokens=32,
    )  # fmt: skip
    driver.executor.patience = patience
    capacity = 2 * num_blocks
    fitting = [(prompt, most) for prompt, most in requests if len(prompt) < capacity]
    names = [driver.add(prompt, max_tokens=most) for prompt, most in fitting]
    driver.run()
    for name, (prompt, most) in zip(names, fitting, strict=True):
        num_expected = min(most, capacity - len(prompt))
        assert driver.tokens(name) == driver.executor.continuation(prompt, num_expected)


@settings(max_examples=80)
@given(
    sizes=limits,
    script=happenings,
    mixed=mixed_plans,
    patience=patiences,
    shares=st.booleans(),
    num_stored=stored,
)
def test_no_room_of_a_step_is_left_to_those_who_wait_and_the_oldest_is_in_every_other_step(
    drive: Drive,
    sizes: dict[str, int],
    script: list[tuple[Any, Any]],
    mixed: MixedPlan,
    patience: int,
    shares: bool,
    num_stored: int,
) -> None:
    lengths = {"vocab_size": VOCAB_SIZE, "max_model_len": MAX_MODEL_LEN, "num_stored": num_stored}
    driver = drive((), mixed, shares, **lengths, **sizes)
    driver.executor.patience = patience
    scheduler = driver.engine.scheduler
    most_absent = 1 + (patience + 1) * (mixed.mode is MixedMode.CORUN)
    absences: dict[str, int] = {}

    def watch(batch: Batch) -> None:
        oldest = next(iter([*scheduler.running, *scheduler.waiting])).request_id
        present = {request.request_id for request in batch.requests}
        absences[oldest] = 0 if oldest in present else absences.get(oldest, 0) + 1
        assert absences[oldest] <= most_absent
        num_prompt_tokens = batch.num_tokens - batch.num_riders
        has_tokens = num_prompt_tokens < (mixed.chunk_tokens or sizes["max_num_batched_tokens"])
        has_tokens &= batch.num_tokens < sizes["max_num_batched_tokens"]
        has_seats = len(scheduler.running) < sizes["max_num_seqs"]
        is_prefill = batch.phase is Phase.PREFILL and mixed.mode is not MixedMode.CORUN
        if is_prefill and scheduler.waiting and has_tokens and has_seats:
            head = scheduler.waiting[0]
            prefix = scheduler.cache.room(head, num_spare=len(scheduler.running))
            assert prefix is None or scheduler.is_worth_waiting(head, prefix)

    driver.executor.watch = watch
    play(driver, script)
