"""The compiled executor: arrays that phases share, views, switching of phases."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from codegen.layout.arrays import TensorSpec
from codegen.spec import Phase
from platforms.memory import Arena, ArenaError
from sandwich.errors import UnsoundExecutorError
from sandwich.executor.assembly import compiled_executor
from sandwich.executor.base import Batch
from sandwich.executor.compiled import CompiledExecutor
from sandwich.executor.programs import compile_programs
from sandwich.executor.specs import distinct_arrays, program_specs, step_arrays, step_bytes
from tests.sandwich.executor.conftest import LIMITS, Sequences, TinyModel, tokens


def logits_of(executor: CompiledExecutor, batch: Batch) -> np.ndarray:
    return executor.run(batch).logits.copy()


def test_a_step_gives_views_of_its_phase_that_the_next_one_overwrites(
    compiled: CompiledExecutor, sequences: Sequences
) -> None:
    first = compiled.run(sequences.batch(Phase.DECODE, {0: [1], 1: [2]}))
    assert first.logits.shape == (2, LIMITS.vocab_size)
    assert first.logits.dtype == np.float32
    assert first.argmax == first.logits.argmax(axis=1).tolist()
    assert first.native_seconds is not None
    assert first.native_seconds > 0
    kept = first.logits.copy()
    second = compiled.run(sequences.batch(Phase.DECODE, {1: [3]}))
    assert np.shares_memory(first.logits, second.logits)
    assert not np.array_equal(first.logits[0], kept[0])
    np.testing.assert_array_equal(first.logits[1], kept[1])


def test_phases_may_alternate_in_one_cache(
    compiled: CompiledExecutor, model: TinyModel, sequences: Sequences
) -> None:
    reference, prompt = model.reference(), tokens(50)
    steps = [
        sequences.batch(Phase.PREFILL, {0: prompt[:20]}),
        sequences.batch(Phase.DECODE, {0: prompt[20:21]}),
        sequences.batch(Phase.PREFILL, {0: prompt[21:40], 2: [7]}),
        sequences.batch(Phase.DECODE, {2: [8], 0: prompt[40:41]}),
        sequences.batch(Phase.DECODE, {0: prompt[41:42], 2: [9]}),
        sequences.batch(Phase.PREFILL, {0: prompt[42:]}),
    ]
    for batch in steps:
        actual, expected = logits_of(compiled, batch), reference.run(batch).logits
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_largest_batch_fits(
    compiled: CompiledExecutor, model: TinyModel, sequences: Sequences
) -> None:
    reference, quarter = model.reference(), LIMITS.max_num_batched_tokens // 4
    for start in range(0, LIMITS.max_model_len - 1, quarter):
        count = min(quarter, LIMITS.max_model_len - 1 - start)
        batch = sequences.batch(Phase.PREFILL, {seq: tokens(count, seq) for seq in range(4)})
        expected = reference.run(batch).logits
        actual = logits_of(compiled, batch)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    last = sequences.batch(Phase.DECODE, {seq: [seq] for seq in range(4)})  # the longest context
    expected = reference.run(last).logits
    actual = logits_of(compiled, last)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_phases_share_arrays_of_one_name_and_shape(model: TinyModel) -> None:
    layout = model.weights.layout
    specs = program_specs(model.plans, layout, model.kv.dtype, LIMITS)
    distinct = distinct_arrays(specs.values())
    groups = {phase: step_arrays(spec) for phase, spec in specs.items()}
    assert set(distinct) == {
        (name, spec) for group in groups.values() for name, spec in group.items()
    }
    # only the prefill plan of this model cuts K in blocks and needs room for partial sums
    assert [
        name for name, _ in distinct if groups[Phase.PREFILL][name] != groups[Phase.DECODE][name]
    ] == [
        "partial",
        "partial",
    ]
    assert len(distinct) == len(groups[Phase.PREFILL]) + 1
    assert step_bytes(specs) == sum(spec.arena_nbytes for spec in distinct.values())


def test_a_workspace_of_step_bytes_is_just_large_enough(model: TinyModel, cache_dir: Path) -> None:
    layout, kv = model.weights.layout, model.kv
    specs = program_specs(model.plans, layout, kv.dtype, LIMITS)
    programs = compile_programs(specs, model.plans, cache_dir, is_pinned=False)
    arena = Arena(kv.keys.arena_nbytes + kv.values.arena_nbytes, "cache")
    cache = {
        name: arena.array(spec.shape, spec.dtype) for name, spec in _cache_specs(model).items()
    }
    with pytest.raises(ArenaError):
        CompiledExecutor(
            programs, LIMITS, model.weights.tensors, cache, Arena(step_bytes(specs) - 64, "small")
        )
    exact = Arena(step_bytes(specs), "workspace")
    with closing(CompiledExecutor(programs, LIMITS, model.weights.tensors, cache, exact)):
        assert exact.nbytes - exact.nbytes_used < 64


def _cache_specs(model: TinyModel) -> dict[str, TensorSpec]:
    return {"keys": model.kv.keys, "values": model.kv.values}


def test_programs_are_compiled_once_and_then_read_from_the_folder(
    model: TinyModel, compiled: CompiledExecutor, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sandwich.executor.programs")
    with closing(model.compiled(cache_dir)) as again:
        batch = Sequences().batch(Phase.PREFILL, {0: tokens(9)})
        np.testing.assert_array_equal(logits_of(again, batch), logits_of(compiled, batch))
    assert "compiling" not in caplog.text


def test_timers_change_no_result(
    model: TinyModel, compiled: CompiledExecutor, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sandwich.executor.bound")
    timed = compiled_executor(
        model.plans,
        model.weights.layout,
        model.kv,
        LIMITS,
        lambda: model.weights,
        cache_dir,
        is_pinned=False,
        debug=3,
    )
    with closing(timed):
        batch = Sequences().batch(Phase.PREFILL, {0: tokens(9)})
        np.testing.assert_array_equal(logits_of(timed, batch), logits_of(compiled, batch))
    assert caplog.text.count("gate_up") == 3  # one line a step: two to warm up, then ours


def test_a_stopped_step_computes_nothing_and_the_next_one_is_right(
    compiled: CompiledExecutor, model: TinyModel, sequences: Sequences
) -> None:
    batch = sequences.batch(Phase.PREFILL, {0: tokens(20)})
    expected = logits_of(compiled, batch)
    other = logits_of(compiled, sequences.batch(Phase.PREFILL, {1: tokens(20, 5)}))
    compiled.stop()
    assert np.array_equal(logits_of(compiled, batch), other)  # what was in the array
    assert compiled.take_stop()
    assert not compiled.take_stop()
    assert np.array_equal(logits_of(compiled, batch), expected)


def test_a_sound_executor_proves_it_in_any_block_and_one_with_other_weights_does_not(
    compiled: CompiledExecutor, model: TinyModel
) -> None:
    compiled.warm_up()
    compiled.prove(block_id=3)
    norm = model.weights.tensors["norm"]
    kept = norm.copy()
    norm *= 1.5
    with pytest.raises(UnsoundExecutorError, match="after a failed step the prefill program"):
        compiled.prove(block_id=3)
    norm[:] = kept
    compiled.prove(block_id=0)
