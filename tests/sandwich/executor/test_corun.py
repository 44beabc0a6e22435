"""A prefill step and decode steps at the same time, on cores of their own: bit for bit the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codegen.spec import Phase
from platforms.memory import Arena
from sandwich.engine.engine import Engine
from sandwich.executor.base import ExecutorLimits, StepKind
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.programs import compile_programs
from sandwich.executor.specs import corun_specs, program_specs, step_bytes
from sandwich.executor.verify import VerifyingExecutor
from sandwich.requests.request import Request
from sandwich.requests.sampling_params import SamplingParams
from schedules.mixed.plan import TAKE_TURNS, MixedMode, MixedPlan
from tests.sandwich.executor.conftest import CPUS, LIMITS, Sequences, TinyModel, tokens

pytestmark = pytest.mark.skipif(len(CPUS) < 2, reason="co-running takes two CPUs")

CORUN = MixedPlan(MixedMode.CORUN, 16, prefill_cpus=CPUS[1:], decode_cpus=CPUS[:1])


@pytest.fixture(scope="module")
def corun_model(model: TinyModel) -> TinyModel:
    return replace(model, plans=replace(model.plans, mixed=CORUN))


@pytest.fixture(scope="module")
def executor(corun_model: TinyModel, cache_dir: Path) -> Iterator[CompiledExecutor]:
    with closing(corun_model.compiled(cache_dir)) as made:
        yield made


def test_both_steps_compute_what_they_compute_alone(
    executor: CompiledExecutor, compiled: CompiledExecutor
) -> None:
    outputs = []
    for run_beside in (False, True):
        sequences, used = Sequences(), executor if run_beside else compiled
        used.run(sequences.batch(Phase.PREFILL, {0: tokens(35), 1: tokens(3, 1)}))
        prompt = sequences.batch(Phase.PREFILL, {2: tokens(70, 2)})
        steps = [sequences.batch(Phase.DECODE, {0: [i], 1: [i + 9]}) for i in range(8)]
        if run_beside:
            used.start(prompt)
        decoded = [used.run(step).logits.copy() for step in steps]
        first = used.wait() if run_beside else used.run(prompt)
        after = sequences.batch(Phase.DECODE, {2: [5], 0: [6]})
        outputs.append([*decoded, first.logits.copy(), used.run(after).logits.copy()])
    for alone, beside in zip(*outputs, strict=True):
        np.testing.assert_array_equal(alone, beside)


def test_a_started_step_is_done_some_time_and_then_waited_for(executor: CompiledExecutor) -> None:
    sequences = Sequences()
    executor.run(sequences.batch(Phase.PREFILL, {1: [1]}))
    executor.start(sequences.batch(Phase.PREFILL, {0: tokens(20)}))
    for token in tokens(90):
        if executor.is_done():
            break
        executor.run(sequences.batch(Phase.DECODE, {1: [token]}))
    output = executor.wait()
    assert output.logits.shape == (20, LIMITS.vocab_size)
    assert output.native_seconds is not None
    assert not executor.is_done()


def test_what_decodes_beside_shares_no_array_with_the_other_programs(
    executor: CompiledExecutor,
) -> None:
    apart = executor._corun[Phase.DECODE].arrays
    others = [*executor._programs.values(), executor._corun[Phase.PREFILL]]
    assert {len(array) for array in (apart["x"], apart["token_ids"])} == {LIMITS.max_num_seqs}
    for other in others:
        for array in other.arrays.values():
            assert not any(np.shares_memory(array, own) for own in apart.values())
    shared = executor._programs[Phase.PREFILL].arrays["x"]
    assert np.shares_memory(shared, executor._corun[Phase.PREFILL].arrays["x"])


def test_the_workspace_has_room_for_all_four_programs(
    corun_model: TinyModel, cache_dir: Path
) -> None:
    plans, layout, kv = corun_model.plans, corun_model.weights.layout, corun_model.kv
    assert plans.corun is not None
    specs = program_specs(plans, layout, kv.dtype, LIMITS)
    beside = corun_specs(plans, layout, kv.dtype, LIMITS)
    assert {phase: spec.num_cores for phase, spec in beside.items()} == dict.fromkeys(Phase, 1)
    arena = Arena(kv.keys.arena_nbytes + kv.values.arena_nbytes, "cache")
    caches = (("keys", kv.keys), ("values", kv.values))
    cache = {name: arena.array(spec.shape, spec.dtype) for name, spec in caches}
    exact = Arena(step_bytes(specs, beside), "workspace")
    made = CompiledExecutor(
        compile_programs(specs, plans, cache_dir, is_pinned=False),
        LIMITS,
        corun_model.weights.tensors,
        cache,
        exact,
        compile_programs(beside, plans.corun, cache_dir, is_pinned=False),
    )
    with closing(made):
        assert 0 <= exact.nbytes - exact.nbytes_used < 64
    assert exact.nbytes > step_bytes(specs)


def test_plans_that_do_not_co_run_have_no_programs_beside(model: TinyModel) -> None:
    assert corun_specs(model.plans, model.weights.layout, model.kv.dtype, LIMITS) == {}


def test_a_step_in_flight_is_verified_when_it_is_waited_for(
    corun_model: TinyModel, executor: CompiledExecutor
) -> None:
    sequences = Sequences()
    verifying = VerifyingExecutor(executor, corun_model.reference(), "float32")
    verifying.run(sequences.batch(Phase.PREFILL, {1: tokens(9)}))
    prompt = sequences.batch(Phase.PREFILL, {0: tokens(40)})
    verifying.start(prompt)
    verifying.run(sequences.batch(Phase.DECODE, {1: [3]}))
    assert verifying.wait().logits.shape == (40, LIMITS.vocab_size)


def generate(executor: CompiledExecutor, mixed: MixedPlan, abort: str = "") -> dict[str, list[int]]:
    """Tokens of six requests that come one after the other; `abort` goes in the middle."""
    engine = Engine(executor, mixed)
    found: dict[str, list[int]] = {f"r{number}": [] for number in range(6)}
    num_beside = 0

    def step() -> None:
        nonlocal num_beside
        for event in engine.step():
            found[event.request_id] += event.token_ids
        num_beside += engine.scheduler.in_flight is not None
        engine.scheduler.check_integrity()

    for number, name in enumerate(found):
        params = SamplingParams(temperature=0.0, max_tokens=14)
        engine.add_request(Request(name, tokens(5 + 13 * number, number), params))
        for _ in range(3):
            step()
        if number == 3:
            engine.abort(abort)
    while engine.has_work():
        step()
    has_mixed_steps = engine.stats.steps[StepKind.MIXED].num_steps > 0
    assert has_mixed_steps == (mixed.mode is MixedMode.RIDE)
    assert (num_beside > 0) == (mixed.mode is MixedMode.CORUN)
    return found


@pytest.mark.parametrize("abort", ["", "r2", "r3"])
def test_tokens_are_the_same_in_every_mode(executor: CompiledExecutor, abort: str) -> None:
    modes = (TAKE_TURNS, MixedPlan(MixedMode.TURNS, 7), MixedPlan(MixedMode.RIDE, 16), CORUN)
    expected = generate(executor, TAKE_TURNS)
    for mixed in modes:
        actual = generate(executor, mixed, abort)
        for name, wanted in expected.items():
            assert actual[name] == (wanted[: len(actual[name])] if name == abort else wanted)


def test_limits_of_a_step_are_the_larger_of_tokens_and_sequences() -> None:
    assert ExecutorLimits(4, 8, 6, 2, 16, 9).max_step_tokens == 6
    assert ExecutorLimits(4, 8, 2, 6, 16, 9).max_step_tokens == 6


def test_closing_waits_for_the_step_in_flight(corun_model: TinyModel, cache_dir: Path) -> None:
    executor = corun_model.compiled(cache_dir)
    executor.start(Sequences().batch(Phase.PREFILL, {0: tokens(60)}))
    executor.close()
    assert executor.is_done()
