"""Batches of timed steps are what an engine would build; real steps run on any plan."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from codegen.layout.model import DEFAULT_BLOCK_SIZE, ModelLayout
from codegen.spec import Phase
from codegen.step.operators import step_operators
from platforms.probe import probe
from sandwich.engine.batching import build_batch
from sandwich.models.presets import preset
from sandwich.startup.step_bench import StepBench, batch_of
from schedules.cost import StepCase
from schedules.tiles.default_plans import default_plans, panel_width

TINY = preset("tiny")


@pytest.mark.parametrize(
    "case",
    [
        StepCase(Phase.PREFILL, 1),
        StepCase(Phase.PREFILL, 33),
        StepCase(Phase.DECODE, 1, 1),
        StepCase(Phase.DECODE, 3, 32),
        StepCase(Phase.DECODE, 2, 65),
    ],
)
def test_a_case_becomes_the_batch_that_an_engine_would_run(case: StepCase) -> None:
    found = batch_of(case, vocab_size=512)
    is_prefill = case.phase is Phase.PREFILL
    num_seqs, context = (1, case.num_tokens) if is_prefill else (case.num_tokens, case.context)
    per_seq = case.num_tokens // num_seqs
    for request in found.requests:
        assert request.num_tokens == context
        assert request.block_table.num_blocks == -(-context // DEFAULT_BLOCK_SIZE)
        assert request.token_ids[:context].max() < 512
        request.num_computed = context - per_seq
    built = build_batch(case.phase, found.requests, [per_seq] * num_seqs)
    for name, wanted in zip(built._fields, built, strict=True):
        value = getattr(found, name)
        assert (list(value) if isinstance(wanted, list) else value) == wanted, name
    owned = [block for request in found.requests for block in request.block_table.ids]
    assert len(set(owned)) == len(owned)


@pytest.mark.slow
def test_real_steps_are_timed_on_the_cores_of_a_plan(cache_dir: Path) -> None:
    machine = probe()
    isa, shape = machine.isa_row, TINY.shape(128)
    layout = ModelLayout.build(shape, "float32", isa.lanes, panel_width(isa))
    plans = default_plans(isa, machine.usable_cpus()[:1], shape)
    bench = StepBench(machine, TINY, layout, "float32", max_cached=128)
    with closing(bench), bench.on(plans, cache_dir, has_timers=True) as timer:
        for case in (StepCase(Phase.PREFILL, 5), StepCase(Phase.DECODE, 2, 40)):
            assert timer.seconds(case) > 0
            by_operator, total = timer.operator_ns(case)
            assert set(by_operator) == set(step_operators(layout).names)
            assert 0 < sum(by_operator.values()) <= total
